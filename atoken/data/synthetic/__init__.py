"""Synthetic training data: images, videos and 3D assets with captions, made from nothing but a seed."""
