"""Decomposed diffusion sampling (Chung, Lee & Ye 2024): conjugate gradients from the prior's mean."""

from __future__ import annotations

from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.settings import NonNegative, Positive, PositiveInt, checked


@checked
class DDS(PosteriorMean):
    """A few conjugate-gradient steps from `x0_hat` towards the data.

    Without `gamma` they solve `A^T A x = A^T y` (the paper's CT). With `gamma` they solve the proximal problem
    `min_x gamma/2 ||A x - y||^2 + 1/2 ||x - x0_hat||^2`, that is `(A^T A + I / gamma) x = A^T y + x0_hat / gamma`
    (the paper's MRI, gamma 5).

    Both are solved for the correction `d = x - x0_hat`, whose right-hand side is `A^T (y - A x0_hat)`.

    Args:
        iterations: maximum number of conjugate-gradient steps.
        gamma: weight of the data in the proximal form.
        discrepancy: stop in each slice once its residual falls to this many times the expected size of the noise,
            `discrepancy sigma_y sqrt(number of values)` (Morozov's principle), because a closer fit would fit the
            noise. 0 does all the steps. Only without gamma.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, iterations: PositiveInt = 15, gamma: Positive | None = None, discrepancy: NonNegative = 1.0):
        if discrepancy and gamma is not None:
            raise InputError(f"DDS has gamma {gamma} and discrepancy {discrepancy}; set discrepancy to 0 with gamma")
        self.iterations, self.gamma, self.discrepancy = iterations, gamma, discrepancy

    @classmethod
    def published(cls, gamma: float | None = None) -> DDS:
        """The paper's settings: always 5 steps; no gamma for CT, gamma 5 for MRI."""
        return cls(iterations=5, gamma=gamma, discrepancy=0.0)

    def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
        A = measurement.operator
        residual = measurement.residual(x0_hat)
        damping = 1 / self.gamma if self.gamma else 0.0
        decrease = None
        if self.discrepancy:
            decrease = residual.abs().square().flatten(1).sum(1) - measurement.noise_energy(self.discrepancy)
        return x0_hat + A.solve(-A.adjoint(residual), self.iterations, damping=damping, decrease=decrease), {}
