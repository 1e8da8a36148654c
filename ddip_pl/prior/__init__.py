"""The diffusion prior: network, noise schedule, training, files."""
