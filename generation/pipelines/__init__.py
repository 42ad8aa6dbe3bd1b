"""What a user holds: a generator with its tokenizer, with the habits of diffusers' pipelines."""
