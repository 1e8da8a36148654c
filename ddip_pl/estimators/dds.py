"""Decomposed diffusion sampling (Chung, Lee & Ye 2024): conjugate gradients from the prior's mean."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.settings import Positive, PositiveInt, checked

Gamma = Positive | Literal["noise", "infinite"]


@checked
class DDS(PosteriorMean):
    """Conjugate gradients from `x0_hat` on `min_x gamma ||A x - y||^2 + ||x - x0_hat||^2`.

    With `gamma = (spread sigma_t / sigma_y)^2`, the result is the mean of the Gaussian posterior if the standard
    deviation of the noise is `sigma_y` and that of the error of `x0_hat` is `spread sigma_t` (as in PiGDM, Song et al.
    2023). The data decide where they are more certain than the prior, and noise is not fitted.

    The correction `d = x - x0_hat` solves `(A^T A + I / gamma) d = A^T (y - A x0_hat)`.

    Args:
        iterations: maximum number of conjugate-gradient steps.
        gamma: weight of the data, from the "noise" as above or fixed, such as 5 in the paper's MRI. "infinite"
            leaves out the second term, as in the paper's CT.
        spread: error of the prior's mean in units of `sigma_t`, if gamma is from the noise.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, iterations: PositiveInt = 30, gamma: Gamma = "noise", spread: Positive = 2.0):
        self.iterations, self.gamma, self.spread = iterations, gamma, spread

    @classmethod
    def published(cls, gamma: Gamma = "infinite") -> DDS:
        """The paper's settings: 5 steps; infinite gamma for CT, 5 for MRI."""
        return cls(iterations=5, gamma=gamma)

    @classmethod
    def posterior(cls) -> DDS:
        """For `Sampler.posterior()`, which keeps the noise that a larger spread would let in."""
        return cls(spread=0.12)

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        A = measurement.operator
        gradient = A.adjoint(measurement.residual(x0_hat))
        weight = damping(self.gamma, self.spread, measurement.sigma_y, sigma_t)
        return x0_hat + A.solve(-gradient, self.iterations, damping=weight), {}


def damping(gamma: Gamma, spread: float, sigma_y: float, sigma_t: float) -> float:
    """`1 / gamma`, see `DDS`."""
    if gamma == "noise":
        return (sigma_y / (spread * sigma_t)) ** 2
    return 0.0 if gamma == "infinite" else 1 / gamma
