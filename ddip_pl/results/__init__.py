"""Reconstructed volumes, the folders that they are written to, and comparisons of them."""
