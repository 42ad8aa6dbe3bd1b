"""The metrics of the harness: each wraps functions of ``atoken/metrics`` and keeps the contract of ``Metric``."""
