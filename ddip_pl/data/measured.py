"""Measurements from file: what a scanner measured, for `predict`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.scans.hdf5 import read_measurement

BRIGHT = 99.5  # per cent of the voxels are darker than 1


def normalise(measurement: Measurement) -> Measurement:
    """The measurement of an image whose intensities are those that a prior knows, about [0, 1].

    The measured intensities are in no known units. What becomes 1 is the 99.5th percentile of the modulus of the
    pseudo-inverse over the volume; `window` says what that is in the units of the scanner.

    Raises:
        InputError: the pseudo-inverse is 0 nearly everywhere.
    """
    guess = measurement.unpad(measurement.operator.pseudo_inverse(measurement.y)).norm(dim=1)
    scale = float(np.percentile(guess.numpy(force=True), BRIGHT))
    if not scale > 0:
        raise InputError(f"measurement {measurement.name}: its image is 0 nearly everywhere; nothing to reconstruct")
    low, high = measurement.window
    return replace(
        measurement,
        y=measurement.y / scale,
        sigma_y=measurement.sigma_y / scale,
        window=(low, low + scale * (high - low)),
    )


def noise_level(measurement: Measurement) -> float:
    """Standard deviation of the noise, estimated from the measurement in the way of its operator.

    Raises:
        InputError: there is none to be seen.
    """
    sigma_y = measurement.operator.noise_level(measurement.y)
    if not 0 < sigma_y < float("inf"):
        raise InputError(f"measurement {measurement.name}: its noise level cannot be estimated; give data.sigma_y")
    return sigma_y


class Scans(Sequence[Measurement]):
    """Measurements that are read when their turn comes; only the last one is kept in memory.

    Args:
        paths: files.
        read: makes a measurement of one of them.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Measurement]):
        self.paths, self.read = paths, lru_cache(maxsize=1)(read)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Measurement:  # type: ignore[override]
        return self.read(self.paths[index])


class MeasuredDataModule(MeasurementDataModule):
    """What a scanner measured, from file; see `read_measurement` for the formats and docs/measurements.md.

    Args:
        path: file, or list of files.
        slices: number of slices, the central ones; by default all.
        first: index of the first slice, where not the central ones are wanted.
        sigma_y: standard deviation of the noise, in the scale of the unit-norm operator and an image in [0, 1]; by
            default what the file says, or else what is estimated from the data.
        calibration: width of the centre of k-space that coil maps are calibrated from, at most.
    """

    def __init__(
        self,
        path: str | list[str],
        slices: int | None = None,
        first: int | None = None,
        sigma_y: float | None = None,
        calibration: int = 24,
    ):
        super().__init__()
        if sigma_y is not None and not 0 <= sigma_y < float("inf"):
            raise InputError(f"data.sigma_y is {sigma_y}; give a standard deviation of at least 0")
        self.paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
        self.slices, self.first, self.sigma_y, self.calibration = slices, first, sigma_y, calibration

    def setup(self, stage: str) -> None:
        if stage == "test":
            raise InputError("what a scanner measured has no truth to compare with; use ddip-pl predict")
        self.measurements = Scans(self.paths, self.read)
        # All are read once, so that none is found to be bad in the middle of the run; the first one stays.
        names = Counter(measurement.name for measurement in reversed(self.measurements))
        if not names or max(names.values()) > 1:
            raise InputError(f"data.path has {sorted(names.elements())}; give scans that differ in their names")

    def read(self, path: Path) -> Measurement:
        """Read a file, scale it and find out its noise level."""
        measurement = normalise(read_measurement(path, self.slices, self.first, self.calibration))
        if self.sigma_y is not None:
            return replace(measurement, sigma_y=self.sigma_y)
        if measurement.sigma_y >= 0:
            return measurement
        return replace(measurement, sigma_y=noise_level(measurement))
