"""Algorithms on callables and tensors: conjugate gradients, ADMM for total variation, FISTA."""
