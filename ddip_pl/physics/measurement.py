"""A measurement: what was measured, how, and where the result belongs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddip_pl.physics.operator import LinearOperator

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass
class Measurement:
    """`y = A x + n` for all slices of one volume.

    Attributes:
        y: measurement in the scale of the unit-norm operator; first axis slices, or groups of coupled ones.
        operator: `A`.
        sigma_y: standard deviation of `n`, in the same scale; of complex values `E |n|^2 = sigma_y^2`.
        name: of the volume; its results are filed under it.
        reference: the true image `(slices, channels, height, width)` in [0, 1], where it is known.
        window: intensities that 0 and 1 stand for, in the units of the source.
        affine: `(4, 4)`, from indices (column, row, slice) of the reconstruction to scanner coordinates in mm.
        margin: rows above and below, columns left and right that are padding and not image.
        header: of the DICOM series that the volume was read from, if it was, for series derived from it.
        units: of the intensities, where they are known.
        estimate: images `(slices, channels, height, width)` at which slices are held while others are looked at; for
            coupled slices only.
    """

    y: Tensor
    operator: LinearOperator
    sigma_y: float
    name: str
    reference: Tensor | None = None
    window: tuple[float, float] = (0.0, 1.0)
    affine: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    header: Dataset | None = None
    units: str = ""
    estimate: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y) * self.operator.coupled

    def __getitem__(self, slices: slice | Tensor) -> Measurement:
        """The measurement of some slices only; of coupled ones, what the estimate of the others does not explain."""
        operator, reference = self.operator.select(slices), None if self.reference is None else self.reference[slices]
        if self.operator.coupled == 1:
            y = self.y[slices]
        else:
            assert self.estimate is not None, "coupled slices cannot be told apart without an estimate of the volume"
            y = operator(self.estimate[slices]) - self.residual(self.estimate)
        return replace(self, y=y, operator=operator, reference=reference, estimate=None)

    def to(self, *args: object, **kwargs: object) -> Measurement:
        """The same on another device, as `Tensor.to`."""
        moved = {n: v.to(*args, **kwargs) for n, v in vars(self).items() if hasattr(v, "to") and n != "affine"}  # type: ignore[call-overload]
        return replace(self, **moved)

    def noise_energy(self, discrepancy: float = 1.0) -> Tensor:
        """`(discrepancy sigma_y)^2` times the number of values, for each slice or those measured together, `(len(y),)`.

        It is what `|| A x - y ||^2` is expected to be for the true `x`, with discrepancy 1 (Morozov's principle).
        """
        return (discrepancy * self.sigma_y) ** 2 * self.operator.values(self.y)

    def residual(self, x: Tensor) -> Tensor:
        """`A x - y` for images `x (slices, channels, height, width)`."""
        return self.operator(x) - self.y

    def unpad(self, x: Tensor) -> Tensor:
        """Images without the padding that fitted them to the prior's size, and 0 where nothing is measured."""
        x = self.operator.visible(x)
        top, bottom, left, right = self.margin
        return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def simulate(x: Tensor, operator: LinearOperator, sigma_y: float, generator: torch.Generator | None = None) -> Tensor:
    """`A x + n` with Gaussian noise `n` of standard deviation `sigma_y` at each measured value.

    For complex values `sigma_y^2` is the variance of real and imaginary part together.
    """
    with torch.no_grad():
        y = operator(x)
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
        return y + sigma_y * operator.sampled(noise)
