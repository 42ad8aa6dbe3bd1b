"""Training data: the procedural generator."""
