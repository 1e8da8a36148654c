"""Measured data, one module per file format."""
