"""ddip-pl: 3D CT and MRI reconstruction with a diffusion prior learnt from ellipses and adapted to the scan."""

__version__ = "0.1.0"
