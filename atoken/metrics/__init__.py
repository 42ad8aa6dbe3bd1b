"""Measures of images, vectors, codes and distributions as functions without state, and the pinned files they need."""
