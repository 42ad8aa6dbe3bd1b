"""Conversations to train on: files, mixtures of them, how long each is, and packed micro-batches."""
