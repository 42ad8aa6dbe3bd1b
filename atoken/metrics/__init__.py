"""Measures of images and features as functions without state."""
