"""Measured data in the scanner's units: every format is read into a `Recording`, which becomes a `Scan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ddip_pl.errors import InputError
from ddip_pl.physics.description import numbers
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.physics.weighted import weighted
from ddip_pl.scans.kspace import completed
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.claims import check_claim
from ddip_pl.volumes.frame import Frame, folder_name
from ddip_pl.volumes.volume import is_affine

SMALL_IMAGE = 2**20  # bytes of an image that is always allowed; larger ones take long, however few the data

Margin = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Measured data and how they were measured; see docs/measurements.md.

    Attributes:
        name: of the scan; the folder with its results is named after it, see `folder_name`.
        operator: class of the operator.
        data: measured values, with the operator's `axes`.
        description: of the operator, see `LinearOperator.describe`; for k-space, mask and coil maps may be missing. Its
            `pixel_size` or `field_of_view`, in mm, gives the pixel size; without them `affine` does.
        calibration: k-space that coil maps are estimated from, like `data`, 0 where not measured; by default `data`.
        sigma_y: standard deviation of the noise in the units of `data`; nan if unknown.
        certainty: the inverse of the noise's standard deviation at each value of `data`, in any unit; by default it is
            the same everywhere. With it, the noise level is estimated, whatever `sigma_y` says.
        affine: `(4, 4)`, from (column, row, slice) of the reconstruction without its margin to scanner coordinates in
            mm (RAS+); by default the image is centred at the origin.
        slice_spacing: in mm, for scans without affine.
        margin: rows above and below, columns left and right of the image, removed before the result is written.
        units: of the written intensities, which are `slope` times the reconstructed ones, plus `intercept`.
        slope: see `units`.
        intercept: see `units`.
    """

    name: str
    operator: type[LinearOperator]
    data: np.ndarray
    description: Mapping[str, Any]
    calibration: np.ndarray | None = None
    sigma_y: float = float("nan")
    certainty: np.ndarray | None = None
    affine: np.ndarray | None = None
    slice_spacing: float = 1.0
    margin: Margin = (0, 0, 0, 0)
    units: str = ""
    slope: float = 1.0
    intercept: float = 0.0

    def scan(self, calibration: int = 24) -> Scan:
        """The measurement in the scale of the unit-norm operator, with the image in the scanner's units.

        Args:
            calibration: largest width of the k-space centre that coil maps are estimated from.

        Raises:
            InputError: the data are invalid or inconsistent with the description.
        """
        self.check()
        description = self.description
        if "coils" in self.operator.axes:
            description = completed(description, self.data, calibration, self.calibration)
        operator = self.operator.from_description(description, self.data.shape).normalised()
        height, width = self.pixel(operator)
        frame = self.frame(operator, height, width)
        unit = operator.unit((height, width))
        y = self.measured(operator, unit)
        if self.certainty is None:
            return Scan(Measurement(y, operator, self.sigma_y / unit), frame)
        operator, y = weighted(operator, y, torch.from_numpy(self.certainty).reshape(y.shape))
        return Scan(Measurement(y, operator, float("nan")), frame)

    def check(self) -> None:
        """Check the axes, that all values are finite and no slice is all zero, and the settings that scale the image.

        Raises:
            InputError: one of these fails.
        """
        axes = self.operator.axes
        if self.data.ndim != len(axes):
            raise InputError(f"data of shape {self.data.shape}; expected {len(axes)} axes ({', '.join(axes)})")
        each = axes[0].removesuffix("s")
        for i, values in enumerate(self.data):
            if not np.isfinite(values).all():
                raise InputError(f"data has NaN or infinite values in {each} {i}; leave that {each} out")
            if not values.any():
                raise InputError(f"data is all zero in {each} {i}; expected measured values")
        if self.sigma_y < 0 or self.slope == 0:
            raise InputError(
                f"sigma_y {self.sigma_y:g}, rescale_slope {self.slope:g}; expected a noise level of at least 0 and a "
                "slope other than 0"
            )
        if self.affine is not None and not is_affine(self.affine):
            raise InputError(f"affine {self.affine.tolist()}; expected an invertible 4x4 matrix")
        size, slices = self.claimed("image_size", 1), self.claimed("slices", len(self.data))
        coils = self.data.shape[axes.index("coils")] if "coils" in axes else 1
        check_claim(size * size * slices * coils * 4, self.data.nbytes, "an image of this size", SMALL_IMAGE)

    def claimed(self, name: str, default: float) -> float:
        """A number in the description; `default` if it is none, about which the operator complains."""
        value = self.description.get(name, default)
        return float(value) if isinstance(value, int | float | np.number) and np.isfinite(value) else default

    def pixel(self, operator: LinearOperator) -> tuple[float, float]:
        """Height and width of a pixel, in mm.

        Raises:
            InputError: one of them, or the slice spacing, is missing or not positive.
        """
        _, rows, columns = operator.shape
        if "field_of_view" in self.description:
            height, width = numbers(self.description, "field_of_view", 2)
            height, width = height / rows, width / columns
        elif "pixel_size" in self.description or self.affine is None:
            [height] = [width] = numbers(self.description, "pixel_size", 1)
        else:
            width, height, _ = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        for name, length in ("pixel size", min(height, width)), ("slice spacing", self.slice_spacing):
            if not length > 0:
                raise InputError(f"{name} is {length:g} mm; expected a positive length")
        return height, width

    def frame(self, operator: LinearOperator, height: float, width: float) -> Frame:
        """The frame of an image whose pixels have this height and width in mm.

        Raises:
            InputError: the margin leaves no pixels.
        """
        slices, rows, columns = operator.shape
        top, bottom, left, right = self.margin
        if min(self.margin) < 0 or top + bottom >= rows or left + right >= columns:
            raise InputError(f"margin {self.margin} leaves nothing of {rows} x {columns} pixels")
        affine = self.affine
        if affine is None:  # centred at the origin; columns to the right, rows down, slices up
            affine = np.diag([width, -height, self.slice_spacing, 1.0])
            kept = columns - left - right, rows - top - bottom, slices
            affine[:3, 3] = -affine[:3, :3] @ [(count - 1) / 2 for count in kept]
            if not is_affine(affine):
                raise InputError(f"pixels of {height:g} x {width:g} mm, {self.slice_spacing:g} mm apart; expected mm")
        window = self.intercept, self.intercept + self.slope
        return Frame(folder_name(self.name), affine, window, self.margin, self.units)

    def measured(self, operator: LinearOperator, unit: float) -> torch.Tensor:
        """`data / unit` with the shape and type of the operator's measurements.

        Raises:
            InputError: the data have another type or size.
        """
        part = operator.select(slice(operator.coupled))  # the first slice, or all if they are measured together
        like = part(part.zeros())
        kinds, values = ("c", "complex") if like.is_complex() else ("biuf", "real")
        if self.data.dtype.kind not in kinds:
            raise InputError(f"data of type {self.data.dtype}; expected {values} values")
        if self.data[0].size != like[0].numel():
            raise InputError(f"data of shape {self.data.shape}; {type(operator).__name__} measures {operator.range}")
        data = torch.from_numpy(self.data.astype(np.complex64 if like.is_complex() else np.float32))
        return operator.sampled(data.reshape(len(data), *like.shape[1:]) / unit)
