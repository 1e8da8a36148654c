"""Reconstruction of a volume by reverse diffusion."""
