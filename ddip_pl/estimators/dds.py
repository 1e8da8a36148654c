"""Decomposed diffusion sampling (Chung, Lee & Ye 2024): conjugate gradients from the prior's mean."""

from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.solvers.cg import conjugate_gradient


class DDS(PosteriorMean):
    """A few conjugate-gradient steps from `x0_hat` towards the data.

    Without `gamma` on `A^T A x = A^T y` (the paper's CT), with it on the proximal problem
    `min_x gamma/2 ||A x - y||^2 + 1/2 ||x - x0_hat||^2`, that is `(I + gamma A^T A) x = x0_hat + gamma A^T y`
    (the paper's MRI, gamma 5).

    Both are solved for the correction `d = x - x0_hat`, whose right-hand side is `A^T (y - A x0_hat)`.

    Args:
        iterations: conjugate-gradient steps, at most.
        gamma: weight of the data in the proximal form.
        discrepancy: a slice is left alone as soon as its residual is this many times as large as the noise is expected
            to be, `discrepancy sigma_y sqrt(number of values)` (Morozov's principle): what is left then is noise, and
            closer agreement would be with the noise. 0 makes all the steps, as published. For the form without gamma.
    """

    def __init__(self, iterations: int = 5, gamma: float | None = None, discrepancy: float = 0.0):
        if iterations < 1:
            raise InputError(f"DDS with {iterations} iterations does nothing; give at least 1")
        if gamma is not None and gamma <= 0:
            raise InputError(f"gamma is {gamma}; give a positive weight, or none for the form without prior term")
        if discrepancy < 0 or (discrepancy and gamma is not None):
            raise InputError(f"discrepancy is {discrepancy}; give 0 or more, and 0 with gamma")
        self.iterations, self.gamma, self.discrepancy = iterations, gamma, discrepancy

    def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
        operator, gamma = measurement.operator, self.gamma
        residual = measurement.residual(x0_hat)
        gradient = -operator.adjoint(residual)
        if gamma is None:
            enough = measurement.noise_energy(self.discrepancy)
            decrease = residual.abs().square().flatten(1).sum(1) - enough if self.discrepancy else None
            correction = conjugate_gradient(
                operator.normal, gradient, self.iterations, decrease, coupled=operator.coupled
            )
            return x0_hat + correction, {}
        correction = conjugate_gradient(
            lambda d: d + gamma * operator.normal(d), gamma * gradient, self.iterations, coupled=operator.coupled
        )
        return x0_hat + correction, {}
