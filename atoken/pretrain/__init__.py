"""Training of the tokenizer: losses, teachers, stages as data, micro-batches, evaluation."""
