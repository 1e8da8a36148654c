"""Measured data, one file a format."""
