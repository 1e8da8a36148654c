"""Measurements from and for DeepInverse (deepinv)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator


class DeepinvOperator(LinearOperator):
    """A linear physics of deepinv, applied to all slices as a batch. It has the norm of the physics.

    Args:
        physics: `deepinv.physics.LinearPhysics`.
        like: images that it measures, `(slices, channels, height, width)`, with 1 channel or 2 (real and imaginary).

    Raises:
        InputError: the images have another shape.
    """

    def __init__(self, physics: Any, like: Tensor):
        if like.ndim != 4 or like.shape[1] not in (1, 2):
            raise InputError(f"deepinv images of shape {tuple(like.shape)}; expected (slices, 1 or 2, height, width)")
        super().__init__((len(like), *like.shape[2:]))
        self.physics, self.channels = physics, like.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.physics.A(x)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = self.physics.A_adjoint(y)
        return x


def from_deepinv(physics: Any, y: Tensor, sigma_y: float | None = None) -> Measurement:
    """The measurement of a deepinv physics, with an operator of unit norm.

    Args:
        physics: `deepinv.physics.LinearPhysics`, which treats a batch of slices alike.
        y: its measurement, `(slices, ...)`.
        sigma_y: standard deviation of the noise; by default that of the physics' noise model.

    Raises:
        InputError: the noise level is unknown, or the physics is not linear or not one of images.
    """
    if sigma_y is None:
        sigma_y = getattr(getattr(physics, "noise_model", None), "sigma", None)
        if sigma_y is None:
            raise InputError("the physics has no Gaussian noise model; give sigma_y")
    if not hasattr(physics, "A_adjoint"):
        raise InputError(f"{type(physics).__name__} has no adjoint; expected a linear physics")
    operator = DeepinvOperator(physics, physics.A_adjoint(y))
    norm = operator.norm
    return Measurement(y / norm, operator.normalised(), float(torch.as_tensor(sigma_y).mean()) / norm)


def to_deepinv(measurement: Measurement) -> tuple[Any, Tensor]:
    """A physics of deepinv and its measurement. Slices are the batch; complex values stay complex.

    Raises:
        InputError: deepinv is not installed.
    """
    try:
        from deepinv.physics import GaussianNoise, LinearPhysics
    except ImportError as error:
        raise InputError("deepinv is not installed; pip install 'ddip-pl[deepinv]'") from error
    A = measurement.operator

    class Physics(LinearPhysics):  # type: ignore[misc]
        """`A` with its adjoint and pseudo-inverse."""

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return A(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return A.adjoint(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
            return A.pseudo_inverse(y)

    return Physics(noise_model=GaussianNoise(measurement.sigma_y)), measurement.y
