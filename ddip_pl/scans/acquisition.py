"""What a scanner measured, in its own units, and how: checked, and turned into a `Measurement`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.physics.operator import height_width
from ddip_pl.physics.projector import Projector
from ddip_pl.volumes.volume import is_affine


@dataclass(kw_only=True)
class Acquisition(ABC):
    """What all acquisitions have in common; see docs/measurements.md.

    Attributes:
        source: where it comes from, for messages.
        name: of the scan; its results are filed under it.
        data: measured values, first axis slices.
        pixel: height and width of a pixel of the reconstruction, in mm.
        sigma_y: standard deviation of the noise in the units of `data`; nan where not known.
        affine: `(4, 4)`, from (column, row, slice) of the reconstruction without its margin to scanner coordinates in
            mm (RAS+).
        slice_spacing: in mm, for scans without affine.
        margin: rows above and below, columns left and right of the reconstruction that are not to be written.
        units: of the intensities that are written, which are `slope` times those reconstructed, plus `intercept`.
    """

    source: str
    name: str
    data: np.ndarray
    pixel: tuple[float, float]
    sigma_y: float = float("nan")
    affine: np.ndarray | None = None
    slice_spacing: float = 1.0
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    units: str = ""
    slope: float = 1.0
    intercept: float = 0.0

    @abstractmethod
    def measurement(self, calibration: int = 24) -> Measurement:
        """The measurement in the scale of the unit-norm operator, of an image in the units of the scanner.

        Args:
            calibration: width of the centre of k-space that coil maps are calibrated from, at most.

        Raises:
            InputError: something does not fit.
        """

    def check(self, kind: str, axes: tuple[str, ...], kinds: str, values: str) -> None:
        """What is asked of any data: axes, type, finite values, something but 0 in each slice, positive lengths."""
        if self.data.ndim != len(axes):
            raise InputError(
                f"{self.source}: {kind} of shape {self.data.shape}; expected {len(axes)} axes ({', '.join(axes)})"
            )
        if self.data.dtype.kind not in kinds:
            raise InputError(f"{self.source}: {kind} of type {self.data.dtype}; expected {values}")
        for i, measured in enumerate(self.data):
            if not np.isfinite(measured).all():
                raise InputError(f"{self.source}: {kind} has NaN or infinite values in slice {i}; leave that slice out")
            if not measured.any():
                raise InputError(f"{self.source}: {kind} is all zero in slice {i}; expected measured values")
        for name, length in ("pixel size", min(self.pixel)), ("slice spacing", self.slice_spacing):
            if not 0 < length < float("inf"):
                raise InputError(f"{self.source}: {name} is {length:g} mm; expected a positive length")
        if (
            self.sigma_y < 0
            or self.sigma_y == float("inf")
            or self.slope == 0
            or not np.isfinite([self.slope, self.intercept]).all()
        ):
            raise InputError(
                f"{self.source}: sigma_y {self.sigma_y:g}, rescale_slope {self.slope:g}, rescale_intercept "
                f"{self.intercept:g}; expected a noise level of at least 0, a slope other than 0 and finite numbers"
            )
        if self.affine is not None and not is_affine(self.affine):
            raise InputError(f"{self.source}: affine {self.affine.tolist()}; expected an invertible 4x4 matrix")

    def scaled(self, data: Tensor, operator: Projector | CartesianMRI | NonCartesianMRI, unit: float) -> Measurement:
        """The measurement `data / unit`."""
        height, width = height_width(operator.image_size)
        top, bottom, left, right = self.margin
        if min(self.margin) < 0 or top + bottom >= height or left + right >= width:
            raise InputError(f"{self.source}: margin {self.margin} leaves nothing of {height} x {width} pixels")
        affine = self.affine
        if affine is None:  # around the origin; columns to the right, rows down, slices up
            affine = np.diag([self.pixel[1], -self.pixel[0], self.slice_spacing, 1.0])
            affine[:3, 3] = -affine[:3, :3] @ [
                (width - left - right - 1) / 2,
                (height - top - bottom - 1) / 2,
                (len(data) - 1) / 2,
            ]
        return Measurement(
            y=data / unit,
            operator=operator,
            sigma_y=self.sigma_y / unit,
            name=self.name,
            window=(self.intercept, self.intercept + self.slope),
            affine=torch.from_numpy(affine.astype(np.float64)),
            margin=self.margin,
            units=self.units,
        )
