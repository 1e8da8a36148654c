"""What a CT scanner measured, with parallel beam or fan beam."""

from dataclasses import dataclass

import numpy as np
import torch

from ddip_pl.errors import InputError
from ddip_pl.physics.ct import FanBeamCT, ParallelBeamCT
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.projector import Projector
from ddip_pl.scans.acquisition import Acquisition

ONE_TURN = 2.02 * np.pi


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
        operator = self.operator(self.image_size, self.data.shape[2], self.detector_spacing / self.pixel[0])
        data = torch.from_numpy(self.data.astype(np.float32))[:, None]
        return self.scaled(data, operator, operator.scale * self.pixel[0])

    def operator(self, size: int, detectors: int, spacing: float) -> Projector:
        """The operator, with lengths in pixels."""
        return ParallelBeamCT(size, self.angles.tolist(), detectors=detectors, spacing=spacing)


@dataclass(kw_only=True)
class FanBeamSinogram(Sinogram):
    """Line integrals from a source to a flat detector, see `FanBeamCT` for the orientation.

    Attributes:
        source_distance: from the source to the axis of rotation, in mm.
        detector_distance: from the axis of rotation to the detector, in mm.
    """

    source_distance: float
    detector_distance: float

    def operator(self, size: int, detectors: int, spacing: float) -> Projector:
        width = size * self.pixel[0]
        if not width / 2**0.5 < self.source_distance < float("inf") or not 0 < self.detector_distance < float("inf"):
            raise InputError(
                f"{self.source}: source_distance {self.source_distance:g} mm, detector_distance "
                f"{self.detector_distance:g} mm; expected them positive, and the source outside of the image, more "
                f"than {width / 2**0.5:g} mm from the axis"
            )
        return FanBeamCT(
            size, self.angles.tolist(), source_distance=self.source_distance / width,
            detector_distance=self.detector_distance / width, detectors=detectors, spacing=spacing,
        )  # fmt: skip
