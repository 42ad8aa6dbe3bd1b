"""Training of any model: engines, the loop, the folder of a run."""
