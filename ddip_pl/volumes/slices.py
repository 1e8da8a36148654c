"""Slices of a volume as images: selected, turned upright, resized and scaled to [0, 1]."""

from typing import Literal

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.volumes.volume import Volume

AnatomicalPlane = Literal["axial", "coronal", "sagittal"]
AXES = {"axial": "z y x", "coronal": "y z x", "sagittal": "x z y"}  # slices, rows and columns of each plane


def span(depth: int, first: int | None, count: int | None, what: str, kind: str = "slices") -> slice:
    """Range of the selected slices.

    Args:
        depth: number of slices available.
        first: index of the first slice; by default the slices are the central ones.
        count: number of slices, by default all from `first` on.
        what: what the slices belong to, for the error message.
        kind: what they are called there.

    Raises:
        InputError: there are not that many.
    """
    asked = " and ".join(f"data.{n} is {v}" for n, v in (("first", first), ("slices", count)) if v is not None)
    count = depth - (first or 0) if count is None else count
    first = (depth - count) // 2 if first is None else first
    if count < 1 or first < 0 or first + count > depth:
        raise InputError(f"{asked + '; ' if asked else ''}{what} has {depth} {kind}")
    return slice(first, first + count)


def cut(volume: Volume, plane: AnatomicalPlane, first: int | None, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a volume as upright images, and their place.

    Args:
        volume: see `Volume`.
        plane: of the slices.
        first: index of the first slice; by default the slices are the central ones.
        count: number of slices, by default all from `first` on.

    Returns:
        Images `(slices, rows, columns)` with the patient's front or head up; affine `(4, 4)` from (column, row, slice)
        to scanner coordinates in mm (RAS+).

    Raises:
        InputError: there are not that many slices.
    """
    normal, up, across = ("xyz".index(axis) for axis in AXES[plane].split())
    chosen = span(volume.data.shape[normal], first, count, "the volume", f"{plane} slices")
    images = rearrange(volume.data, f"x y z -> {AXES[plane]}")[chosen, ::-1]
    to_volume = np.zeros((4, 4))
    to_volume[3, 3] = to_volume[across, 0] = to_volume[normal, 2] = 1
    to_volume[up, 1], to_volume[up, 3], to_volume[normal, 3] = -1, volume.data.shape[up] - 1, chosen.start
    return np.ascontiguousarray(images), volume.affine @ to_volume


def to_unit_interval(data: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map the intensities of `window` to [0, 1] and clip the rest.

    Raises:
        InputError: the window is empty, or the image is constant inside it or fills less than 1 % of it.
    """
    low, high = window
    if not low < high:
        raise InputError(f"data.window is {window}; the first value must be below the second")
    image = np.clip((data - low) / (high - low), 0, 1)
    if image.min() == image.max():
        raise InputError(
            f"the slices are constant inside data.window {window}; their values are {data.min()} .. {data.max()}"
        )
    if image.max() - image.min() < 0.01:  # for instance attenuation in 1/cm under a window in Hounsfield units
        raise InputError(
            f"the slices have values {data.min()} .. {data.max()}, less than 1 % of data.window {window}; "
            "give the intensities to show as --data.window [LOW,HIGH]"
        )
    return image


def fit(images: Tensor, size: tuple[int, int], enlarge: bool) -> tuple[Tensor, tuple[int, int, int, int], np.ndarray]:
    """Resize images to fit into `size`, keep their proportions, and pad the rest with 0.

    Args:
        images: `(slices, 1, rows, columns)` in [0, 1].
        size: height and width in pixels.
        enlarge: enlarge smaller images too; otherwise they are only padded.

    Returns:
        The images; their margin `(top, bottom, left, right)`; the affine `(4, 4)` from (column, row, slice) of the new
        image without its margin to (column, row, slice) of the old image.
    """
    height, width = size
    old = images.shape[-2:]
    factor = min(height / old[0], width / old[1], float("inf") if enlarge else 1.0)
    new = [max(1, round(length * factor)) for length in old]
    if new != list(old):
        images = F.interpolate(images, size=new, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - new[0]) // 2, (width - new[1]) // 2
    margin = (top, height - new[0] - top, left, width - new[1] - left)
    affine = np.eye(4)
    for axis, step in ((0, old[1] / new[1]), (1, old[0] / new[0])):
        affine[axis, axis], affine[axis, 3] = step, (step - 1) / 2
    return F.pad(images, (margin[2], margin[3], margin[0], margin[1])), margin, affine
