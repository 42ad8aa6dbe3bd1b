"""What is computed of samples: every metric keeps the contract of ``eval/contract.py``."""
