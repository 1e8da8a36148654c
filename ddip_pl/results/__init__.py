"""Reconstructed volumes, their folders, and comparisons of runs."""
