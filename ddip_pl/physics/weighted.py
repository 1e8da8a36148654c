"""Rays that are not equally certain: weighted until their noise is the same."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import Derived, LinearOperator


class Weighted(Derived):
    """`W^(1/2) A x`, for values whose noise has the covariance `sigma^2 W^-1`, with a diagonal `W`.

    With `W^(1/2) y` as the measurement, the noise has the standard deviation `sigma` everywhere, so that whatever
    minimises `|| A x - y ||^2` weighs each value by its certainty, and `sigma_y` keeps its meaning.

    Args:
        operator: `A`.
        weight: `W^(1/2)`, `(slices or 1, ...)` like `y`, positive.
    """

    per_slice: ClassVar[tuple[str, ...]] = ("weight",)
    weight: Tensor

    def __init__(self, operator: LinearOperator, weight: Tensor):
        super().__init__(operator)
        self.register_buffer("weight", weight.to(operator.like), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.weight * y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.operator.pseudo_inverse(y / self.weight)

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`; rays are the only values that are weighted so far."""
        return sinogram_noise(y / self.weight, self.weight)


def weighted(operator: LinearOperator, y: Tensor, weight: Tensor) -> tuple[LinearOperator, Tensor]:
    """The weighted operator with unit spectral norm, and its measurement.

    Args:
        operator: `A`.
        y: its measurement.
        weight: the inverse of the noise's standard deviation at each value, in any unit, like `y`.
    """
    weight = weight / Weighted(operator, weight).norm
    return Weighted(operator, weight), weight * y
