"""Data sets by the layout that they have on disk, and those that are made from a seed."""
