"""Figures of merit, and pictures of volumes."""
