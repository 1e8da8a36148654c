"""Sampling masks of Cartesian MRI: which positions in k-space are measured."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.operator import ImageSize, height_width
from ddip_pl.settings import Range, Seed, UnitInterval, checked

Acceleration = Annotated[float, Range(1, 1000)]
Density = Literal["uniform", "gaussian"]
GAUSSIAN_WIDTH = 0.15  # standard deviation of the Gaussian density, as a share of k-space


@checked
class Sampling(ABC):
    """Makes a mask for an image size; the same settings give the same mask.

    Args:
        acceleration: number of positions in full k-space divided by the number measured, centre included.
        centre: width of the fully sampled centre, as a share of each undersampled axis.
        seed: of the random positions.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, acceleration: Acceleration, centre: UnitInterval = 0.08, seed: Seed = 0) -> None:
        self.acceleration, self.centre, self.seed = acceleration, centre, seed

    @abstractmethod
    def __call__(self, image_size: ImageSize) -> Tensor:
        """Mask `(ky, kx)`, bool, True if measured; the zero frequency is at half of each length, rounded down.

        Raises:
            InputError: this centre is too large for the acceleration, or nothing would be measured.
        """

    def _middle(self, length: int) -> np.ndarray:
        """Which positions along an axis belong to the centre, `(length,)` bool."""
        width = round(self.centre * length)
        first = length // 2 - width // 2
        position = np.arange(length)
        return (first <= position) & (position < first + width)

    def _outside(self, centre: np.ndarray) -> int:
        """Number of positions to measure outside the `centre`."""
        count = round(centre.size / self.acceleration) - int(centre.sum())
        if count < 0 or count + centre.sum() == 0:
            raise InputError(
                f"acceleration {self.acceleration:g} leaves {count + centre.sum()} of {centre.size} positions, but the "
                f"centre has {centre.sum()}; lower acceleration or centre"
            )
        return count

    def _draw(self, centre: np.ndarray, density: np.ndarray) -> np.ndarray:
        """The `centre` and the other positions to measure, drawn from `density` without replacement."""
        weight = np.where(centre, 0, density).ravel()
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(centre.size, self._outside(centre), replace=False, p=weight / max(weight.sum(), 1e-300))
        mask = centre.copy()
        mask.flat[chosen] = True
        return mask


class EquispacedLines(Sampling):
    """Lines along ky, evenly spaced outside the centre (rounded to whole positions)."""

    def __call__(self, image_size: ImageSize) -> Tensor:
        height, width = height_width(image_size)
        mask = self._middle(width)
        count, outside = self._outside(mask), np.flatnonzero(~mask)
        mask[outside[((np.arange(count) + 0.5) * len(outside) / max(count, 1)).astype(int)]] = True
        return _lines(mask, height)


@checked
class RandomLines(Sampling):
    """Lines along ky, drawn with uniform or Gaussian density.

    Args:
        acceleration: see `Sampling`.
        centre: see `Sampling`; these are the autocalibration lines.
        seed: see `Sampling`.
        density: "uniform", or "gaussian": denser towards the centre.
    """

    def __init__(
        self, acceleration: Acceleration, centre: UnitInterval = 0.08, seed: Seed = 0, density: Density = "uniform"
    ) -> None:
        super().__init__(acceleration, centre, seed)
        self.density = density

    def __call__(self, image_size: ImageSize) -> Tensor:
        height, width = height_width(image_size)
        return _lines(self._draw(self._middle(width), _density(width, self.density)), height)


@checked
class RandomPoints(Sampling):
    """Points in the (ky, kx) plane, drawn with uniform or Gaussian density, and a rectangular centre.

    Args:
        acceleration: see `Sampling`.
        centre: see `Sampling`.
        seed: see `Sampling`.
        density: "uniform", or "gaussian": denser towards the centre.
    """

    def __init__(
        self, acceleration: Acceleration, centre: UnitInterval = 0.08, seed: Seed = 0, density: Density = "gaussian"
    ) -> None:
        super().__init__(acceleration, centre, seed)
        self.density = density

    def __call__(self, image_size: ImageSize) -> Tensor:
        shape = height_width(image_size)
        centre = np.outer(*map(self._middle, shape))
        density = np.outer(*(_density(length, self.density) for length in shape))
        return torch.from_numpy(self._draw(centre, density))


class PoissonDisc(Sampling):
    """Variable-density Poisson-disc points in the (ky, kx) plane, without its corners, and a rectangular centre.

    Uses SigPy's implementation (Bridson 2007), which reaches the acceleration to within a few per cent.
    """

    def __call__(self, image_size: ImageSize) -> Tensor:
        shape = height_width(image_size)
        middles = [self._middle(length) for length in shape]
        centre = np.outer(*middles)
        self._outside(centre)
        from sigpy.mri import poisson  # takes seconds, so import it only here

        calibration = tuple(int(middle.sum()) for middle in middles)
        tolerance = 0.05 * self.acceleration
        try:
            points = poisson(shape, self.acceleration, calibration, dtype=bool, seed=self.seed, tol=tolerance)
        except ValueError as error:
            raise InputError(
                f"no Poisson-disc mask of {shape[0]} x {shape[1]} with acceleration {self.acceleration:g}; "
                f"choose another acceleration or centre"
            ) from error
        return torch.from_numpy(points | centre)


def _density(length: int, density: Density) -> np.ndarray:
    position = np.arange(length) - length // 2
    if density == "gaussian":
        return np.exp(-((position / (GAUSSIAN_WIDTH * length)) ** 2) / 2)
    return np.ones(length)


def _lines(columns: np.ndarray, height: int) -> Tensor:
    return torch.from_numpy(columns).repeat(height, 1)


def measured_centre(mask: Tensor, most: int) -> int:
    """Width of the largest square around the zero frequency that is measured in all slices.

    Args:
        mask: `(slices, ky, kx)`, bool.
        most: largest width to try.

    Returns:
        An even number of positions.
    """
    everywhere, size = mask.all(0), 0
    for width in range(2, min(most, *everywhere.shape) + 1, 2):
        rows, columns = (slice(n // 2 - width // 2, n // 2 + width // 2) for n in everywhere.shape)
        if not everywhere[rows, columns].all():
            break
        size = width
    return size
