"""The weights that a tokenizer starts training from."""
