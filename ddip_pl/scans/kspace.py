"""What an MRI scanner measured: k-space, Cartesian or along any trajectory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.mri import SENSE, CartesianMRI, SingleCoilMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.physics.sensitivity import calibrated_maps
from ddip_pl.scans.acquisition import Acquisition

SMALLEST = 4  # image of NonCartesianMRI, in pixels
SMALLEST_CALIBRATION = 8  # of ESPIRiT
FURTHEST = 0.5**0.5  # from a sample in the calibrated centre, in steps of the grid: half a diagonal of its cells


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
            if self.coil_maps is None:
                maps = self._calibrate(data, mask, calibration)
            else:
                maps = checked_maps(self.coil_maps, self.data.shape, self.source)
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

    def _calibrate(self, data: Tensor, mask: Tensor, most: int) -> Tensor:
        """Coil maps from the largest square centre that is fully measured in all slices."""
        everywhere, size = mask.all(0), 0
        for width in range(2, min(most, *everywhere.shape) + 1, 2):
            rows, columns = (slice(n // 2 - width // 2, n // 2 + width // 2) for n in everywhere.shape)
            if not everywhere[rows, columns].all():
                break
            size = width
        check_calibration(size, most, self.source)
        return calibrated_maps(data, size)


@dataclass(kw_only=True)
class NonCartesianKSpace(Acquisition):
    """K-space along any trajectory, the same in all slices; see `NonCartesianMRI`.

    Attributes:
        data: `(slices, coils, samples)`, complex.
        trajectory: `(samples, 2)`, spatial frequencies along rows' and columns' index (ky, kx), in 1/mm.
        image_size: height and width of the reconstruction, in pixels.
        density: compensation `(samples,)` for the density of the samples; by default it is computed.
        coil_maps: `(slices or 1, coils, image_size, image_size)`, complex; by default several coils are calibrated.
    """

    trajectory: np.ndarray
    image_size: int
    density: np.ndarray | None = None
    coil_maps: np.ndarray | None = None

    def measurement(self, calibration: int = 24) -> Measurement:
        self.check("k-space", ("slices", "coils", "samples"), "c", "complex values, both real and imaginary part")
        slices, coils, samples = self.data.shape
        if self.image_size < SMALLEST:
            raise InputError(f"{self.source}: image_size is {self.image_size}; expected at least {SMALLEST} pixels")
        if self.density is not None and not (
            self.density.shape == (samples,) and (self.density >= 0).all() and 0 < self.density.sum() < np.inf
        ):
            raise InputError(
                f"{self.source}: density_compensation of shape {self.density.shape} for {samples} samples; expected "
                f"one value for each, at least 0 and not all 0"
            )
        positions = self._positions()
        density = None if self.density is None else torch.from_numpy(np.asarray(self.density, np.float32))
        data = torch.from_numpy(self.data.astype(np.complex64))
        maps = None
        if self.coil_maps is not None:
            maps = checked_maps(self.coil_maps, (slices, coils, self.image_size, self.image_size), self.source)
        elif coils > 1:
            maps = self._calibrate(data, positions, density, calibration)
        operator = NonCartesianMRI(self.image_size, positions, maps, density=density)
        return self.scaled(data, operator, operator.scale)

    def _positions(self) -> Tensor:
        """Trajectory in radians a pixel."""
        samples, pixel = self.data.shape[2], self.pixel[0]
        if self.trajectory.shape != (samples, 2):
            raise InputError(
                f"{self.source}: trajectory of shape {self.trajectory.shape} for {samples} samples; expected "
                f"({samples}, 2), of (ky, kx)"
            )
        furthest = float(np.abs(self.trajectory).max())
        if not 0 < furthest <= 0.5 / pixel * (1 + 1e-6):  # NaN, too
            raise InputError(
                f"{self.source}: trajectory with positions up to {furthest:g} / mm; pixels of {pixel:g} mm hold at "
                f"most {0.5 / pixel:g} / mm; convert it to cycles per mm, or give a smaller pixel_size"
            )
        return torch.from_numpy(2 * np.pi * pixel * self.trajectory.astype(np.float64))

    def _calibrate(self, data: Tensor, positions: Tensor, density: Tensor | None, most: int) -> Tensor:
        """Coil maps from the largest square centre in which no place of the grid is far from all samples."""
        from scipy.spatial import KDTree

        tree, size = KDTree(positions.numpy() * self.image_size / (2 * np.pi)), 0
        for width in range(2, min(most, self.image_size) + 1, 2):
            steps = np.arange(width) - width // 2
            distances, _ = tree.query(np.stack(np.meshgrid(steps, steps), axis=-1))
            if distances.max() > FURTHEST:
                break
            size = width
        check_calibration(size, most, self.source)
        one = NonCartesianMRI(self.image_size, positions, density=density)
        images = one.pseudo_inverse(data.flatten(0, 1)[:, None])
        grid = (self.image_size, self.image_size)
        fourier = SingleCoilMRI(self.image_size, torch.ones(grid), complex_image=True)
        return calibrated_maps(fourier(images).view(*data.shape[:2], *grid), size)


def checked_maps(coil_maps: np.ndarray, shape: tuple[int, ...], source: str) -> Tensor:
    """Coil maps `(slices or 1, coils, height, width)`, complex64.

    Args:
        coil_maps: as given.
        shape: that they have for all slices.
        source: for messages.

    Raises:
        InputError: they have another shape, or there is nothing in those of a slice.
    """
    maps = np.asarray(coil_maps, np.complex64)
    if maps.ndim != 4 or maps.shape[1:] != shape[1:] or len(maps) not in (1, shape[0]):
        raise InputError(f"{source}: coil maps of shape {maps.shape}; expected {shape}, or one slice of it")
    if not np.isfinite(maps).all() or not maps.any((1, 2, 3)).all():
        raise InputError(f"{source}: coil maps of a slice are all zero, or not finite; calibrate them again")
    return torch.from_numpy(maps)


def check_calibration(size: int, most: int, source: str) -> None:
    """Refuse a centre of k-space that is too small for ESPIRiT.

    Args:
        size: width of the centre that is fully measured.
        most: what the user allows.
        source: for the message.

    Raises:
        InputError: it is too small.
    """
    if size < SMALLEST_CALIBRATION:
        raise InputError(
            f"{source}: coil maps are calibrated from a fully measured centre of k-space, at least "
            f"{SMALLEST_CALIBRATION} wide; here it is {size} (data.calibration {most}); give coil_maps in the file"
        )
