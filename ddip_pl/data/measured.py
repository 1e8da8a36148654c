"""Measured data from file, for `predict`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path

import numpy as np

from ddip_pl.data.module import MeasurementDataModule, Scan
from ddip_pl.errors import InputError
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.scans.counters import ANY, Counters
from ddip_pl.scans.counts import Detector, Tilt
from ddip_pl.scans.files import read_scan, volumes
from ddip_pl.settings import NoiseLevel, NonNegative, NonNegativeInt, Pixels, PositiveInt, checked

BRIGHT = 99.5  # percentile of the voxels that is scaled to 1


def scale_to_prior(scan: Scan) -> Scan:
    """Scale a scan to the intensities that a prior knows, about [0, 1].

    Measured intensities have arbitrary units. The 99.5th percentile of the modulus of the pseudo-inverse over the
    volume becomes 1; the `window` keeps its value in the scanner's units.

    Raises:
        InputError: the pseudo-inverse is 0 nearly everywhere.
    """
    measurement, frame = scan
    operator = measurement.operator
    guess = frame.unpad(operator.visible(operator.pseudo_inverse(measurement.y))).norm(dim=1)
    scale = float(np.percentile(guess.numpy(force=True), BRIGHT))
    if not scale > 0:
        raise InputError(f"measurement {frame.name}: the image is 0 nearly everywhere; there is nothing to reconstruct")
    low, high = frame.window
    return Scan(
        replace(measurement, y=measurement.y / scale, sigma_y=measurement.sigma_y / scale),
        replace(frame, window=(low, low + scale * (high - low))),
    )


def noise_level(scan: Scan) -> float:
    """Standard deviation of the noise, as the operator estimates it from the measurement.

    Raises:
        InputError: the estimate is not positive and finite.
    """
    measurement, frame = scan
    sigma_y = measurement.operator.noise_level(measurement.y)
    if not 0 < sigma_y < float("inf"):
        raise InputError(f"measurement {frame.name}: the noise level cannot be estimated; give data.sigma_y")
    return sigma_y


def matching(path: str) -> list[Path]:
    """The files that a pattern with wildcards matches, sorted; any other path itself.

    Raises:
        InputError: the pattern matches nothing.
    """
    if Path(path).exists() or not has_magic(path):
        return [Path(path)]
    found = sorted(map(Path, glob(path, recursive=True)))
    if not found:
        raise InputError(f"data.path {path}: no such files")
    return found


class Scans(Sequence[Scan]):
    """Scans that are read when needed; only the latest is kept in memory.

    Args:
        sources: files and volumes in them.
        read: reads one of them.
    """

    def __init__(self, sources: Sequence[tuple[Path, Counters]], read: Callable[[Path, Counters], Scan]):
        self.sources, self.read = sources, lru_cache(maxsize=1)(read)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Scan:  # type: ignore[override]
        return self.read(*self.sources[index])


@checked
class MeasuredDataModule(MeasurementDataModule):
    """Measured data from file; see `read_scan` and docs/measurements.md for the formats.

    Args:
        path: file, list of files, or pattern with wildcards, such as `scans/*.h5`. Of several volumes, those that have
            a result of the same settings and data in the output folder are left out.
        slices: number of slices, by default all.
        first: index of the first slice; by default the slices are the central ones.
        sigma_y: standard deviation of the noise, in the scale of the unit-norm operator and an image in [0, 1]; by
            default taken from the file or, if it gives none, estimated from the data.
        calibration: largest width of the k-space centre that coil maps are estimated from.
        operator: class of your own operator, for files with its measurements.
        volume: contrast, phase, repetition or set of the volumes to reconstruct (as `--data.volume.repetition 2`), if a
            file has several; by default all, one after the other.
        centre: bin of the detector that the axis of rotation projects onto, with fractions; by default it is estimated.
            This and the next three are for tomography at synchrotrons (Data Exchange, NXtomo) and TIFF projections.
        binning: bins of the detector are averaged in squares of this width.
        every: only one in so many views is read.
        tilt: of the axis of rotation against the detector's columns, in degrees; positive if the axis moves to higher
            bins in higher rows.
    """

    def __init__(
        self,
        path: str | list[str],
        slices: PositiveInt | None = None,
        first: NonNegativeInt | None = None,
        sigma_y: NoiseLevel | None = None,
        calibration: Pixels = 24,
        operator: type[LinearOperator] | None = None,
        volume: Counters = ANY,
        centre: NonNegative | None = None,
        binning: PositiveInt = 1,
        every: PositiveInt = 1,
        tilt: Tilt = 0.0,
    ):
        super().__init__()
        self.paths = [found for one in ([path] if isinstance(path, str) else path) for found in matching(one)]
        self.slices, self.first, self.sigma_y, self.calibration = slices, first, sigma_y, calibration
        self.operator, self.volume, self.detector = operator, volume, Detector(centre, binning, every, tilt)

    def setup(self, stage: str) -> None:
        if stage == "test":
            raise InputError("measured data have no reference to compare with; use ddip-pl predict")
        sources = [(path, one) for path in self.paths for one in volumes(path, self.volume)]
        self.scans = Scans(sources, self.read)
        # Read all files now, so that a bad one does not stop the run halfway; in reverse, so that the first is cached.
        names = [frame.name for _, frame in reversed(self.scans)][::-1]
        if not names or max(Counter(names).values()) > 1:
            raise InputError(f"data.path has {sorted(names)}; give scans with different names")
        if len(names) > 1:
            left = [source for source, name in zip(sources, names, strict=True) if not self.is_finished(name)]
            # All devices must divide the same list, though the first may already have finished a volume of it.
            self.scans.sources = self.trainer.strategy.broadcast(left) if self.trainer else left

    def read(self, path: Path, volume: Counters = ANY) -> Scan:
        """Read and scale a scan, and find its noise level."""
        scan = scale_to_prior(read_scan(path, self.slices, self.first, self.calibration, volume, self.detector))
        measurement, frame = scan
        sigma_y = measurement.sigma_y if self.sigma_y is None else self.sigma_y
        if sigma_y >= 0:
            return Scan(replace(measurement, sigma_y=sigma_y).with_surplus(), frame)
        return Scan(replace(measurement, sigma_y=noise_level(scan)), frame)
