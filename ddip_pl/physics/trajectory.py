"""Trajectories of non-Cartesian MRI: the positions of the samples in k-space."""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ddip_pl.settings import Range, checked

Readouts = Annotated[int, Range(1, 10_000)]
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2
FURTHEST = 0.5**0.5  # distance to the nearest sample in the covered centre, in grid steps: half a cell's diagonal


class Trajectory(ABC):
    """Makes the sampling positions for an image size."""

    @abstractmethod
    def __call__(self, image_size: int) -> Tensor:
        """Positions `(samples, 2)` of (ky, kx) in radians per pixel, within -pi .. pi, float64."""


@checked
class Radial(Trajectory):
    """Straight lines through the centre, each rotated by the golden angle from the last (Winkelmann et al. 2007).

    Args:
        spokes: number of lines; `pi / 2 n` of them fully sample an image of n x n pixels.

    Raises:
        InputError: the number is below 1.
    """

    def __init__(self, spokes: Readouts) -> None:
        self.spokes = spokes

    def __call__(self, image_size: int) -> Tensor:
        angle = GOLDEN_ANGLE * torch.arange(self.spokes, dtype=torch.float64)[:, None]
        radius = math.pi * torch.arange(-image_size, image_size, dtype=torch.float64) / image_size
        return torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1).flatten(0, 1)


@checked
class Spiral(Trajectory):
    """Archimedean spirals from the centre outwards, at even angles (Meyer et al. 1992).

    Args:
        interleaves: number of spirals.
        acceleration: 1 samples an image fully: neighbouring turns are `2 pi / n` apart for n x n pixels.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, interleaves: Readouts, acceleration: Annotated[float, Range(1, 1000)] = 1.0) -> None:
        self.interleaves, self.acceleration = interleaves, acceleration

    def __call__(self, image_size: int) -> Tensor:
        turns = image_size / 2 / (self.interleaves * self.acceleration)
        length = math.pi * turns * image_size / 2  # of one spiral, in units of the Nyquist distance
        samples = max(2, math.ceil(2 * length))
        # The square root makes the steps along the curve even, except at its start.
        share = torch.linspace(0, 1, samples, dtype=torch.float64).sqrt()
        first = 2 * math.pi * torch.arange(self.interleaves, dtype=torch.float64)[:, None] / self.interleaves
        angle = first + 2 * math.pi * turns * share
        radius = math.pi * (1 - 1e-9) * share
        return torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1).flatten(0, 1)


def covered_centre(positions: Tensor, image_size: int, most: int) -> int:
    """Width of the largest square around the zero frequency in which every grid point has a sample nearby.

    Args:
        positions: `(samples, 2)` of (ky, kx) in radians per pixel.
        image_size: height and width of the image and of the grid.
        most: largest width to try.

    Returns:
        An even number of grid steps.
    """
    from scipy.spatial import KDTree

    tree, size = KDTree(positions.numpy(force=True) * image_size / (2 * math.pi)), 0
    for width in range(2, min(most, image_size) + 1, 2):
        steps = np.arange(width) - width // 2
        distances, _ = tree.query(np.stack(np.meshgrid(steps, steps), axis=-1))
        if distances.max() > FURTHEST:
            break
        size = width
    return size
