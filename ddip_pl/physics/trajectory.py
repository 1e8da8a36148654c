"""Trajectories of non-Cartesian MRI: where in k-space the samples lie."""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2
FURTHEST = 0.5**0.5  # from a sample in the covered centre, in steps of the grid: half a diagonal of its cells


class Trajectory(ABC):
    """Makes the sampling positions for an image size."""

    @abstractmethod
    def __call__(self, image_size: int) -> Tensor:
        """Positions `(samples, 2)` of (ky, kx) in radians a pixel, within -pi .. pi, float64."""


class Radial(Trajectory):
    """Straight lines through the centre, turned by the golden angle from one to the next (Winkelmann et al. 2007).

    Args:
        spokes: number of lines; an image of n pixels is fully sampled by `pi / 2 n`.

    Raises:
        InputError: there are none.
    """

    def __init__(self, spokes: int) -> None:
        if spokes < 1:
            raise InputError(f"spokes of the trajectory is {spokes}; give at least 1")
        self.spokes = spokes

    def __call__(self, image_size: int) -> Tensor:
        angle = GOLDEN_ANGLE * torch.arange(self.spokes, dtype=torch.float64)[:, None]
        radius = math.pi * torch.arange(-image_size, image_size, dtype=torch.float64) / image_size
        return torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1).flatten(0, 1)


class Spiral(Trajectory):
    """Archimedean spirals from the centre outwards, at even angles (Meyer et al. 1992).

    Args:
        interleaves: number of spirals.
        acceleration: 1 samples an image fully: neighbouring turns are `2 pi / n` apart for n pixels.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(self, interleaves: int, acceleration: float = 1.0) -> None:
        if interleaves < 1:
            raise InputError(f"interleaves of the trajectory is {interleaves}; give at least 1")
        if not 1 <= acceleration < float("inf"):
            raise InputError(f"acceleration of the trajectory is {acceleration}; give a finite number of at least 1")
        self.interleaves, self.acceleration = interleaves, acceleration

    def __call__(self, image_size: int) -> Tensor:
        turns = image_size / 2 / (self.interleaves * self.acceleration)
        length = math.pi * turns * image_size / 2  # of one spiral, in units of the Nyquist distance
        samples = max(2, math.ceil(2 * length))
        share = torch.linspace(
            0, 1, samples, dtype=torch.float64
        ).sqrt()  # even steps along the curve, but at its start
        first = 2 * math.pi * torch.arange(self.interleaves, dtype=torch.float64)[:, None] / self.interleaves
        angle = first + 2 * math.pi * turns * share
        radius = math.pi * (1 - 1e-9) * share
        return torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1).flatten(0, 1)


def covered_centre(positions: Tensor, image_size: int, most: int) -> int:
    """Width of the largest square around the zero frequency in which no place of the grid is far from all samples.

    Args:
        positions: `(samples, 2)` of (ky, kx) in radians a pixel.
        image_size: height and width of the image, and of the grid.
        most: width to stop at.

    Returns:
        An even number of steps of the grid.
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
