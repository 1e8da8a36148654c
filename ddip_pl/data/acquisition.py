"""What a scanner measured, in its own units, and how: checked, and turned into a `Measurement`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.ct import ParallelBeamCT
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.mri import SENSE, CartesianMRI, SingleCoilMRI
from ddip_pl.physics.operator import height_width
from ddip_pl.physics.sensitivity import calibrated_maps

SMALLEST_CALIBRATION = 8  # of ESPIRiT
ONE_TURN = 2.02 * np.pi


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
        if self.sigma_y < 0 or self.slope == 0 or not np.isfinite([self.slope, self.intercept]).all():
            raise InputError(
                f"{self.source}: sigma_y {self.sigma_y:g}, rescale_slope {self.slope:g}, rescale_intercept "
                f"{self.intercept:g}; expected a noise level of at least 0, a slope other than 0 and finite numbers"
            )
        if self.affine is not None and (self.affine.shape != (4, 4) or not np.isfinite(self.affine).all()):
            raise InputError(f"{self.source}: affine of shape {self.affine.shape}; expected (4, 4), finite")

    def scaled(self, data: Tensor, operator: ParallelBeamCT | CartesianMRI, unit: float) -> Measurement:
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


@dataclass(kw_only=True)
class Sinogram(Acquisition):
    """Line integrals along parallel beams, see `ParallelBeamCT` for the orientation.

    Attributes:
        data: `(slices, angles, detectors)`, real: what is reconstructed, times mm.
        angles: `(angles,)` in radians.
        detector_spacing: in mm.
        image_size: height and width of the reconstruction, in pixels.
    """

    angles: np.ndarray
    detector_spacing: float
    image_size: int

    def measurement(self, calibration: int = 24) -> Measurement:
        self.check("sinogram", ("slices", "angles", "detectors"), "fiu", "real values")
        count = self.angles.size
        if self.angles.ndim != 1 or count == 0 or not np.isfinite(self.angles).all():
            raise InputError(f"{self.source}: angles of shape {self.angles.shape}; expected a list of finite angles")
        if self.data.shape[1] != count:
            like = [axis for axis in (2, 0) if self.data.shape[axis] == count]
            hint = f"axis {like[0]} looks like the angles, move it to axis 1" if like else "no axis has that length"
            raise InputError(
                f"{self.source}: sinogram of shape {self.data.shape} with {count} angles; expected (slices, angles, "
                f"detectors); {hint}"
            )
        if np.ptp(self.angles) > ONE_TURN:
            raise InputError(
                f"{self.source}: angles from {self.angles.min():g} to {self.angles.max():g} are more than a turn in "
                f"radians and look like degrees; convert them"
            )
        if not 0 < self.detector_spacing < float("inf"):
            raise InputError(f"{self.source}: detector spacing is {self.detector_spacing:g} mm; expected it positive")
        if self.image_size < 1:
            raise InputError(f"{self.source}: image_size is {self.image_size}; expected at least 1 pixel")
        pixel = self.pixel[0]
        operator = ParallelBeamCT(
            self.image_size, self.angles.tolist(), detectors=self.data.shape[2], spacing=self.detector_spacing / pixel
        )
        data = torch.from_numpy(self.data.astype(np.float32))[:, None]
        return self.scaled(data, operator, operator.scale * pixel)


@dataclass(kw_only=True)
class KSpace(Acquisition):
    """Cartesian k-space: centred, of an orthonormal Fourier transform.

    Attributes:
        data: `(slices, coils, ky, kx)`, complex.
        mask: `(ky, kx)` or `(slices, ky, kx)`, not 0 where measured; by default where any coil is not 0.
        coil_maps: `(slices or 1, coils, ky, kx)`, complex; by default several coils are calibrated from the data.
        channels: 2 for complex images, 1 for images of one coil that are known to be real.
    """

    mask: np.ndarray | None = None
    coil_maps: np.ndarray | None = None
    channels: int = 2

    def measurement(self, calibration: int = 24) -> Measurement:
        self.check("k-space", ("slices", "coils", "ky", "kx"), "c", "complex values, both real and imaginary part")
        _, coils, height, width = self.data.shape
        if self.channels not in (1, 2) or (self.channels == 1 and coils > 1):
            raise InputError(
                f"{self.source}: {self.channels} image channels with {coils} coils; expected 2, or 1 with one coil"
            )
        mask = self._mask()
        data = torch.from_numpy(self.data.astype(np.complex64)) * mask[:, None]
        operator: CartesianMRI
        if coils == 1 and self.coil_maps is None:
            operator = SingleCoilMRI((height, width), mask, complex_image=self.channels == 2)
        else:
            maps = self._calibrate(data, mask, calibration) if self.coil_maps is None else self._maps()
            operator = SENSE((height, width), mask, maps)
        return self.scaled(data, operator, operator.scale)

    def _mask(self) -> Tensor:
        """Mask `(slices or 1, ky, kx)`, bool; one for all slices where it is the same in all."""
        mask = (self.data != 0).any(1) if self.mask is None else self.mask != 0
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.shape[1:] != self.data.shape[2:] or len(mask) not in (1, len(self.data)):
            given = mask.shape if self.mask is None else self.mask.shape
            raise InputError(
                f"{self.source}: mask of shape {given} for k-space of shape {self.data.shape}; expected "
                f"{self.data.shape[2:]}, or that for each slice"
            )
        if not mask.any((1, 2)).all():
            raise InputError(f"{self.source}: the mask of a slice is all zero; expected 1 where k-space is measured")
        return torch.from_numpy(mask[:1] if (mask == mask[:1]).all() else mask)

    def _maps(self) -> Tensor:
        assert self.coil_maps is not None
        maps = np.asarray(self.coil_maps, np.complex64)
        if maps.ndim != 4 or maps.shape[1:] != self.data.shape[1:] or len(maps) not in (1, len(self.data)):
            raise InputError(
                f"{self.source}: coil maps of shape {maps.shape} for k-space of shape {self.data.shape}; expected the "
                f"same, or one slice of it"
            )
        if not np.isfinite(maps).all() or not maps.any((1, 2, 3)).all():
            raise InputError(f"{self.source}: coil maps of a slice are all zero, or not finite; calibrate them again")
        return torch.from_numpy(maps)

    def _calibrate(self, data: Tensor, mask: Tensor, most: int) -> Tensor:
        """Coil maps from the largest square centre that is fully measured in all slices."""
        everywhere, size = mask.all(0), 0
        for width in range(2, min(most, *everywhere.shape) + 1, 2):
            rows, columns = (slice(n // 2 - width // 2, n // 2 + width // 2) for n in everywhere.shape)
            if not everywhere[rows, columns].all():
                break
            size = width
        if size < SMALLEST_CALIBRATION:
            raise InputError(
                f"{self.source}: coil maps are calibrated from a fully measured centre of k-space, at least "
                f"{SMALLEST_CALIBRATION} wide; here it is {size} (data.calibration {most}); give coil_maps in the file"
            )
        return calibrated_maps(data, size)
