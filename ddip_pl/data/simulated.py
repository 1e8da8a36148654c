"""A volume and what a scanner would have measured of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.data.phantoms import with_phase
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.operator import ImageSize, LinearOperator, height_width
from ddip_pl.volumes.files import read_volume, volume_name
from ddip_pl.volumes.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
MEASUREMENT = 0x5CA7  # keeps the noise of the measurement apart from that of sampling
SIZE = 128  # rows and columns of a reconstruction, where neither the user nor a prior says
SMALLEST = 4  # rows and columns of an image that can be compared with another
NORMAL_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


def normalise(data: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map the intensities of `window` to [0, 1] and clip what lies outside.

    Raises:
        InputError: the window is empty, or the image is constant inside it.
    """
    low, high = window
    if not low < high:
        raise InputError(f"data.window is {window}; the first value must be below the second")
    image = np.clip((data - low) / (high - low), 0, 1)
    if image.min() == image.max():
        raise InputError(
            f"the slices are constant inside data.window {window}; they have values {data.min()} .. {data.max()}"
        )
    return image


def span(depth: int, first: int | None, count: int | None, what: str, kind: str = "slices") -> slice:
    """Which slices of a volume are wanted.

    Args:
        depth: slices of the volume.
        first: index of the first slice; by default the slices are the central ones.
        count: number of slices, by default all.
        what: what has them, for the message.
        kind: what slices these are.

    Raises:
        InputError: there are not that many.
    """
    asked = " and ".join(f"data.{n} is {v}" for n, v in (("first", first), ("slices", count)) if v is not None)
    count = depth - (first or 0) if count is None else count
    first = (depth - count) // 2 if first is None else first
    if count < 1 or first < 0 or first + count > depth:
        raise InputError(f"{asked + '; ' if asked else ''}{what} has {depth} {kind}")
    return slice(first, first + count)


def cut(volume: Volume, plane: Plane, first: int | None, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a volume as upright images, and where they lie.

    Args:
        volume: see `Volume`.
        plane: of the slices.
        first: index of the first slice; by default the slices are the central ones.
        count: number of slices, by default all.

    Returns:
        Images `(slices, rows, columns)`, patient's front or top up; affine `(4, 4)` from (column, row, slice) to mm.

    Raises:
        InputError: there are not that many slices.
    """
    normal = NORMAL_AXIS[plane]
    across, up = [axis for axis in range(3) if axis != normal]
    chosen = span(volume.data.shape[normal], first, count, "the volume", f"{plane} slices")
    images = volume.data.transpose(normal, up, across)[chosen, ::-1]
    to_volume = np.zeros((4, 4))
    to_volume[3, 3] = to_volume[across, 0] = to_volume[normal, 2] = 1
    to_volume[up, 1], to_volume[up, 3], to_volume[normal, 3] = -1, volume.data.shape[up] - 1, chosen.start
    return np.ascontiguousarray(images), volume.affine @ to_volume


def fit(images: Tensor, size: ImageSize, enlarge: bool) -> tuple[Tensor, tuple[int, int, int, int], Tensor]:
    """Bring images `(slices, 1, rows, columns)` to `size`, in proportion, and pad what is left with 0.

    Larger images are shrunk; smaller ones grow with `enlarge`, or else are padded only.

    Returns:
        The images, the padding `(top, bottom, left, right)`, and the affine `(4, 4)` from (column, row, slice) of the
        new image without its padding to those of the old one.
    """
    height, width = height_width(size)
    old = images.shape[-2:]
    factor = min(height / old[0], width / old[1], float("inf") if enlarge else 1.0)
    new = [max(1, round(length * factor)) for length in old]
    if new != list(old):
        images = F.interpolate(images, size=new, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - new[0]) // 2, (width - new[1]) // 2
    margin = (top, height - new[0] - top, left, width - new[1] - left)
    affine = torch.eye(4, dtype=torch.float64)
    for axis, step in ((0, old[1] / new[1]), (1, old[0] / new[0])):
        affine[axis, axis], affine[axis, 3] = step, (step - 1) / 2
    return F.pad(images, (margin[2], margin[3], margin[0], margin[1])), margin, affine


class VolumeDataModule(MeasurementDataModule):
    """A volume from file and its simulated measurement `y = A x + n`, for `test` and `predict`.

    Args:
        path: NIfTI or HDF5 file, or folder with a DICOM series or `.npy` slices, see `read_volume`.
        operator: makes the measurement operator for an image size, for example `ParallelBeamCT` with its angles; where
            it couples slices, their number is that of the volume.
        sigma_y: standard deviation of the noise, in the scale of the unit-norm operator and an image in [0, 1].
        plane: of the slices.
        slices: number of slices, the central ones; by default all.
        first: index of the first slice, where not the central ones are wanted.
        window: intensities that become 0 and 1; by default the smallest, and the 99.9th percentile.
        size: height and width of the reconstruction, one number where they are the same (CT needs that); by default the
            prior's, or 128 for a method without one.
        enlarge: scale slices that are smaller than that until they fill it; otherwise they are padded, pixel for pixel.
    """

    def __init__(
        self,
        path: str,
        operator: Callable[[ImageSize], LinearOperator],
        sigma_y: float,
        plane: Plane = "axial",
        slices: int | None = None,
        first: int | None = None,
        window: tuple[float, float] | None = None,
        size: ImageSize | None = None,
        enlarge: bool = True,
    ):
        super().__init__()
        if not 0 <= sigma_y < float("inf"):
            raise InputError(f"data.sigma_y is {sigma_y}; give a standard deviation of at least 0")
        if size is not None and min(np.atleast_1d(size)) < 1:
            raise InputError(f"data.size is {size}; give at least 1 pixel")
        self.path, self.operator, self.sigma_y, self.plane = Path(path), operator, sigma_y, plane
        self.slices, self.first, self.window = slices, first, window
        self.size, self.enlarge = size, enlarge

    def setup(self, stage: str) -> None:
        method: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        self.measurements = [self.simulate(self.operator(self.size or method.image_size or SIZE))]

    def simulate(self, operator: LinearOperator) -> Measurement:
        """Read the volume and measure it; the noise depends on the seed of `seed_everything` only.

        Where the operator has complex images, the volume is given a smooth random phase, the same in all slices.
        """
        volume = read_volume(self.path)
        window = self.window or (float(volume.data.min()), float(np.percentile(volume.data, 99.9)))
        images, affine = cut(volume, self.plane, self.first, self.slices)
        images = normalise(images, window)
        size: Any = self.size or operator.image_size
        x, margin, to_slices = fit(torch.from_numpy(images)[:, None].float(), size, self.enlarge)
        generator = torch.Generator().manual_seed(torch.initial_seed() ^ MEASUREMENT)
        if operator.channels == 2:
            offset = 2 * torch.pi * torch.rand(1, generator=generator)
            phase = offset + torch.randn(1, 4, 4, generator=generator)  # as of the phantoms that priors learn from
            x = with_phase(x, phase.expand(len(x), -1, -1))
        operator = operator.for_volume(len(x))
        measurement = Measurement(
            y=simulate(x, operator, self.sigma_y, generator),
            operator=operator,
            sigma_y=self.sigma_y,
            name=volume_name(self.path),
            reference=x,
            window=window,
            affine=torch.from_numpy(affine) @ to_slices,
            margin=margin,
            header=volume.header,
            units=volume.units,
        )
        if min(measurement.unpad(x).shape[-2:]) < SMALLEST:
            rows, columns = images.shape[1:]
            raise InputError(f"slices of {rows} x {columns} pixels; they need {SMALLEST} rows and columns at data.size")
        return measurement
