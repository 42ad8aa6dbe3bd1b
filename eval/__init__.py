"""One harness that measures any tokenizer: reconstruction, semantics and, from folders of samples, generation."""
