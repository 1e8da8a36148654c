"""A volume and its simulated measurement."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ddip_pl.data.module import MeasurementDataModule, Scan
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.operator import ImageSize, LinearOperator, Shape, height_width
from ddip_pl.prior.phantoms import with_phase
from ddip_pl.settings import Intensity, NoiseLevel, NonNegativeInt, PositiveInt, checked
from ddip_pl.volumes.files import read_volume, volume_name
from ddip_pl.volumes.frame import Frame
from ddip_pl.volumes.slices import AnatomicalPlane, cut, fit, to_unit_interval

MEASUREMENT = 0x5CA7  # makes the measurement noise independent of the sampling noise
SIZE = 128  # rows and columns of a reconstruction if neither the user nor a prior sets them
SMALLEST = 4  # fewest rows and columns for which the metrics are defined


@checked
class VolumeDataModule(MeasurementDataModule):
    """A volume from file and its simulated measurement `y = A x + n`, for `test` and `predict`.

    Args:
        path: NIfTI or HDF5 file, or folder with a DICOM series or `.npy` slices, see `read_volume`.
        operator: creates the measurement operator for a volume `(slices, height, width)`, for example `ParallelBeamCT`
            with its angles. It is divided by its norm.
        sigma_y: standard deviation of the noise, in the scale of the unit-norm operator and an image in [0, 1].
        plane: of the slices.
        slices: number of slices, by default all.
        first: index of the first slice; by default the slices are the central ones.
        window: intensities that become 0 and 1; by default the minimum and the 99.9th percentile.
        size: height and width of the reconstruction, or one number for both (CT needs square images); by default the
            prior's, or 128 for a method without a prior.
        enlarge: enlarge smaller slices to `size`; otherwise they are padded.
    """

    def __init__(
        self,
        path: str,
        operator: Callable[[Shape], LinearOperator],
        sigma_y: NoiseLevel,
        plane: AnatomicalPlane = "axial",
        slices: PositiveInt | None = None,
        first: NonNegativeInt | None = None,
        window: tuple[Intensity, Intensity] | None = None,
        size: ImageSize | None = None,
        enlarge: bool = True,
    ):
        super().__init__()
        self.path, self.operator, self.sigma_y, self.plane = Path(path), operator, sigma_y, plane
        self.slices, self.first, self.window = slices, first, window
        self.size, self.enlarge = size, enlarge

    def setup(self, stage: str) -> None:
        method: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        self.scans = [self.simulate(self.size or method.image_size or SIZE)]

    def simulate(self, size: ImageSize) -> Scan:
        """Read the volume and measure it. The noise depends only on the seed given to `seed_everything`.

        If the operator takes complex images, the volume gets a smooth random phase, the same in all slices. The
        reference is 0 where nothing is measured.

        Args:
            size: height and width of the images.

        Raises:
            InputError: the volume or the settings cannot be used.
        """
        volume = read_volume(self.path)
        window = self.window or (float(volume.data.min()), float(np.percentile(volume.data, 99.9)))
        images, affine = cut(volume, self.plane, self.first, self.slices)
        unit = torch.from_numpy(to_unit_interval(images, window)).float()
        x, margin, to_slices = fit(rearrange(unit, "s h w -> s 1 h w"), height_width(size), self.enlarge)
        frame = Frame(volume_name(self.path), affine @ to_slices, window, margin, volume.units, volume.header)
        if min(frame.unpad(x).shape[-2:]) < SMALLEST:
            rows, columns = images.shape[1:]
            raise InputError(
                f"slices of {rows} x {columns} pixels; scaled to data.size they have fewer than {SMALLEST} rows or "
                "columns; give a larger data.size"
            )
        operator = self.operator((len(x), *x.shape[2:])).normalised()
        generator = torch.Generator().manual_seed(torch.initial_seed() ^ MEASUREMENT)
        if operator.channels == 2:
            offset = 2 * torch.pi * torch.rand(1, generator=generator)
            phase = offset + torch.randn(1, 4, 4, generator=generator)  # as for the phantoms that priors are trained on
            x = with_phase(x, phase.expand(len(x), -1, -1))
        y = simulate(x, operator, self.sigma_y, generator)
        return Scan(Measurement(y, operator, self.sigma_y, reference=operator.visible(x)), frame)
