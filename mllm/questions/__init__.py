"""Questions with answers that are known: about what the generator makes, and about photographs with labels."""
