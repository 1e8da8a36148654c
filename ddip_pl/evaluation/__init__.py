"""Figures of merit, and the picture of a volume."""
