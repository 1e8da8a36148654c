"""Algorithms on callables and tensors: conjugate gradients, the alternating direction method of multipliers."""
