"""Generators on AToken's tokens: flow transformers, masked autoregression, and pipelines of them."""
