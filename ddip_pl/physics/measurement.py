"""A measurement: the measured values and the operator that produced them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.noise import degrees_of_freedom, surplus_noise
from ddip_pl.physics.operator import LinearOperator, Slices

log = logging.getLogger(__name__)

TOO_LOW = 0.9  # surplus data with less noise than this, in units of sigma_y, show that sigma_y is too high


@dataclass(frozen=True, eq=False)
class Measurement:
    """`y = A x + n` for all slices of one volume, or for some of them.

    Attributes:
        y: measured values in the scale of the operator; the first axis is slices, or groups of coupled slices.
        operator: `A`.
        sigma_y: standard deviation of `n`, in the same scale; for complex values `E |n|^2 = sigma_y^2`.
        reference: the true images `(slices, channels, height, width)` in [0, 1], if known.
        estimate: see `given`.
        surplus: standard deviation of the noise in the surplus data, in units of `sigma_y`; see `noise_energy`.
    """

    y: Tensor
    operator: LinearOperator
    sigma_y: float
    reference: Tensor | None = None
    estimate: Tensor | None = None
    surplus: float = 1.0

    def __repr__(self) -> str:
        return f"Measurement({tuple(self.y.shape)} by {type(self.operator).__name__}, sigma_y={self.sigma_y:.4g})"

    @property
    def digest(self) -> str:
        """SHA-256 of the measured values."""
        return hashlib.sha256(self.y.numpy(force=True).tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.y) * self.operator.coupled

    def __getitem__(self, slices: Slices) -> Measurement:
        """The measurement of some slices; if slices are coupled, the contribution of the others is subtracted.

        Raises:
            InputError: slices are coupled, and there is no estimate.
        """
        operator, reference = self.operator.select(slices), None if self.reference is None else self.reference[slices]
        if self.operator.coupled == 1:
            y = self.y[slices]
        else:
            if self.estimate is None:
                raise InputError(
                    f"{type(self.operator).__name__} measures slices together; to select some, give an estimate of "
                    "them all: measurement.given(estimate)[slices]"
                )
            y = operator(self.estimate[slices]) - self.residual(self.estimate)
        return Measurement(y, operator, self.sigma_y, reference, surplus=self.surplus)

    def given(self, estimate: Callable[[], Tensor]) -> Measurement:
        """The same measurement, with an estimate at which `[slices]` holds all the other slices.

        Args:
            estimate: returns the volume `(slices, channels, height, width)`; called only if slices are coupled, as
                uncoupled slices do not depend on each other.
        """
        return self if self.operator.coupled == 1 else replace(self, estimate=estimate())

    def to(self, device: torch.device | str) -> Measurement:
        """The same measurement on another device; the operator is moved in place, as modules are."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if hasattr(part, "to")})

    @property
    def image_noise(self) -> float:
        """Standard deviation of the noise where it appears in the image with the mean gain, `sigma_y / gain`."""
        return self.sigma_y / max(self.operator.gain, torch.finfo().tiny)

    def residual(self, x: Tensor) -> Tensor:
        """`A x - y` for images `x (slices, channels, height, width)`."""
        return self.operator(x) - self.y

    def misfit(self, x: Tensor) -> Tensor:
        """`|| A x - y ||^2` of each slice or coupled group, `(len(y),)`."""
        return self.residual(x).abs().square().flatten(1).sum(1)

    def noise_energy(self, discrepancy: float = 1.0) -> Tensor:
        """Expected `misfit` of the true `x`, times `discrepancy^2`, for each slice or coupled group, `(len(y),)`.

        With N values and n degrees of freedom it is `sigma_y^2 (n + surplus^2 (N - n))`. No image fits the noise of the
        N - n surplus values, so their part is known from the data, whatever `sigma_y` says, see `with_surplus`.
        With `surplus` 1 this is Morozov's discrepancy principle, `sigma_y^2 N`.
        """
        values = self.operator.values(self.y)
        degrees = degrees_of_freedom(self.operator, self.y)
        return (discrepancy * self.sigma_y) ** 2 * (degrees + self.surplus**2 * (values - degrees))

    def with_surplus(self) -> Measurement:
        """The same, with `surplus` from the data if they show that `sigma_y` is too high; this logs a warning."""
        found = surplus_noise(self.operator, self.y)
        if found >= TOO_LOW * self.sigma_y:
            return self
        log.warning(
            "the noise level of %.3g is too high: the noise that no image fits has %.3g; leave out data.sigma_y, or "
            "give the lower one",
            self.sigma_y, found,
        )  # fmt: skip
        return replace(self, surplus=found / self.sigma_y)

    @torch.no_grad()
    def relative_residual(self, x: Tensor) -> float:
        """`|| A x - y || / || y ||` of the volume."""
        return float(self.residual(x).norm() / self.y.norm())

    @torch.no_grad()
    def discrepancy(self, x: Tensor) -> float:
        """`|| A x - y || / (sigma_y sqrt(number of values))`: 1 if only noise is left, inf if `sigma_y` is 0."""
        noise = self.sigma_y * float(self.operator.values(self.y).sum().sqrt())
        return float(self.residual(x).norm()) / noise if noise else float("inf")


def simulate(x: Tensor, operator: LinearOperator, sigma_y: float, generator: torch.Generator | None = None) -> Tensor:
    """`A x + n` with Gaussian noise `n` of standard deviation `sigma_y` in each measured value.

    For complex values `sigma_y^2` is the total variance of real and imaginary part.
    """
    with torch.no_grad():
        y = operator(x)
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
        return y + sigma_y * operator.sampled(noise)
