"""Sampling masks of Cartesian MRI: which positions of k-space are measured."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError

Density = Literal["uniform", "gaussian"]
GAUSSIAN_WIDTH = 0.15  # standard deviation of the Gaussian density, as a share of k-space


class Sampling(ABC):
    """Makes a mask for an image size; the same settings make the same mask.

    Args:
        acceleration: values of the full k-space for each one measured, with the centre counted.
        centre: share of the positions along each undersampled axis that are all measured, around the centre.
        seed: of the random positions.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(self, acceleration: float, centre: float = 0.08, seed: int = 0) -> None:
        if not 1 <= acceleration < float("inf"):
            raise InputError(f"acceleration is {acceleration}; give a finite number of at least 1")
        if not 0 <= centre <= 1:
            raise InputError(f"centre of the mask is {centre}; give a share of k-space between 0 and 1")
        if seed < 0:
            raise InputError(f"seed of the mask is {seed}; give a whole number of at least 0")
        self.acceleration, self.centre, self.seed = acceleration, centre, seed

    @abstractmethod
    def __call__(self, image_size: int) -> Tensor:
        """Mask `(ky, kx)`, bool, True where measured; the zero frequency lies at `image_size // 2`.

        Raises:
            InputError: the acceleration cannot be reached with this centre.
        """

    def _middle(self, image_size: int) -> np.ndarray:
        """Which positions along an axis belong to the centre, `(image_size,)` bool."""
        width = round(self.centre * image_size)
        first = image_size // 2 - width // 2
        position = np.arange(image_size)
        return (first <= position) & (position < first + width)

    def _outside(self, centre: np.ndarray) -> int:
        """How many positions outside of the `centre` have to be measured."""
        count = round(centre.size / self.acceleration) - int(centre.sum())
        if count < 0 or count + centre.sum() == 0:
            raise InputError(
                f"acceleration {self.acceleration:g} leaves {count + centre.sum()} of {centre.size} positions, and the "
                f"centre has {centre.sum()}; lower acceleration or centre"
            )
        return count

    def _draw(self, centre: np.ndarray, density: np.ndarray) -> np.ndarray:
        """The `centre` and as many others, drawn with this `density` and without repetition, as have to be measured."""
        weight = np.where(centre, 0, density).ravel()
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(centre.size, self._outside(centre), replace=False, p=weight / max(weight.sum(), 1e-300))
        mask = centre.copy()
        mask.flat[chosen] = True
        return mask


class EquispacedLines(Sampling):
    """Lines along ky, evenly spaced outside of the centre (up to rounding to whole positions)."""

    def __call__(self, image_size: int) -> Tensor:
        mask = self._middle(image_size)
        count, outside = self._outside(mask), np.flatnonzero(~mask)
        mask[outside[((np.arange(count) + 0.5) * len(outside) / max(count, 1)).astype(int)]] = True
        return _lines(mask)


class RandomLines(Sampling):
    """Lines along ky, drawn with uniform or Gaussian density.

    Args:
        acceleration: see `Sampling`.
        centre: see `Sampling`; the autocalibration lines.
        seed: see `Sampling`.
        density: "uniform", or "gaussian": denser towards the centre.
    """

    def __init__(self, acceleration: float, centre: float = 0.08, seed: int = 0, density: Density = "uniform") -> None:
        super().__init__(acceleration, centre, seed)
        self.density = density

    def __call__(self, image_size: int) -> Tensor:
        return _lines(self._draw(self._middle(image_size), _density(image_size, self.density)))


class RandomPoints(Sampling):
    """Points of the (ky, kx) plane, drawn with uniform or Gaussian density, and a square centre.

    Args:
        acceleration: see `Sampling`.
        centre: see `Sampling`.
        seed: see `Sampling`.
        density: "uniform", or "gaussian": denser towards the centre.
    """

    def __init__(self, acceleration: float, centre: float = 0.08, seed: int = 0, density: Density = "gaussian") -> None:
        super().__init__(acceleration, centre, seed)
        self.density = density

    def __call__(self, image_size: int) -> Tensor:
        middle, density = self._middle(image_size), _density(image_size, self.density)
        return torch.from_numpy(self._draw(np.outer(middle, middle), np.outer(density, density)))


class PoissonDisc(Sampling):
    """Variable-density Poisson-disc points of the (ky, kx) plane, without corners, and a square centre.

    SigPy's implementation (Bridson 2007); it reaches the acceleration within a few per cent.
    """

    def __call__(self, image_size: int) -> Tensor:
        middle = self._middle(image_size)
        centre = np.outer(middle, middle)
        self._outside(centre)
        from sigpy.mri import poisson  # takes seconds, and only this needs it

        shape, calibration = (image_size, image_size), (int(middle.sum()),) * 2
        tolerance = 0.05 * self.acceleration
        try:
            points = poisson(shape, self.acceleration, calibration, dtype=bool, seed=self.seed, tol=tolerance)
        except ValueError as error:
            raise InputError(
                f"no Poisson-disc mask of {image_size} x {image_size} with acceleration {self.acceleration:g}; "
                f"choose another acceleration or centre"
            ) from error
        return torch.from_numpy(points | centre)


def _density(image_size: int, density: Density) -> np.ndarray:
    position = np.arange(image_size) - image_size // 2
    if density == "gaussian":
        return np.exp(-((position / (GAUSSIAN_WIDTH * image_size)) ** 2) / 2)
    return np.ones(image_size)


def _lines(columns: np.ndarray) -> Tensor:
    return torch.from_numpy(columns).repeat(len(columns), 1)
