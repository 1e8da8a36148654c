"""From what an X-ray detector counts to line integrals of the attenuation, and to the axis of rotation."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import h5py
import numpy as np
from scipy.ndimage import rotate

from ddip_pl.errors import InputError
from ddip_pl.physics.ct import ParallelBeamCT
from ddip_pl.scans.recording import Recording
from ddip_pl.settings import NonNegative, PositiveInt, Range, checked
from ddip_pl.volumes.slices import span

log = logging.getLogger(__name__)

MILLIMETRES = {
    "m": 1e3, "meter": 1e3, "metre": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3,
    "microns": 1e-3, "nm": 1e-6,
}  # fmt: skip
Tilt = Annotated[float, Range(-10, 10)]

LEAST = 0.01  # certainty of a ray
OPPOSITE = 1.5  # largest distance of two opposite views from 180 degrees, in steps between views


@checked
@dataclass(frozen=True)
class Detector:
    """How the projections of a tomographic scan are read.

    Args:
        centre: bin that the axis of rotation projects onto, with fractions; by default it is estimated.
        binning: bins are averaged in squares of this width.
        every: only one in so many views is read.
        tilt: of the axis of rotation against the detector's columns, in degrees; positive if the axis moves to higher
            bins in higher rows.

    Raises:
        InputError: a setting is out of range.
    """

    centre: NonNegative | None = None
    binning: PositiveInt = 1
    every: PositiveInt = 1
    tilt: Tilt = 0.0

    def rows(self, available: int, first: int | None, slices: int | None) -> tuple[slice, slice]:
        """The rows of the detector to read, and which of them, after averaging, become the selected slices.

        Args:
            available: number of rows.
            first: index of the first slice; by default the slices are the central ones.
            slices: their number, by default all.

        Raises:
            InputError: there are not that many.
        """
        n, binned = self.binning, "" if self.binning == 1 else f" of {self.binning}"
        chosen = span(available // n, first, slices, "the detector", f"rows{binned}")
        if self.tilt:  # every slice lies across many rows
            return slice(0, available // n * n), chosen
        return slice(chosen.start * n, chosen.stop * n), slice(0, chosen.stop - chosen.start)

    def upright(self, views: np.ndarray) -> np.ndarray:
        """Views `(views, rows, bins)` turned about the detector's middle so that the axis is along the columns."""
        if not self.tilt:
            return views
        turned = [rotate(view, -self.tilt, reshape=False, order=1, mode="nearest") for view in views]
        return np.stack(turned)

    def binned(self, image: np.ndarray) -> np.ndarray:
        """An image `(rows, bins)` with its bins averaged, float32; bins left over at the end are dropped.

        Raises:
            InputError: the image is too small.
        """
        n = self.binning
        rows, bins = (length // n for length in image.shape)
        if not (rows and bins):
            raise InputError(f"data.binning is {n}, but the detector has {image.shape[0]} x {image.shape[1]} bins")
        squares = image[: rows * n, : bins * n].reshape(rows, n, bins, n)
        return squares.mean((1, 3), dtype=np.float32)

    def projections(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """All views of a scan with their bins averaged, `(views, rows, bins)`."""
        return np.stack([self.binned(image) for image in images])

    @property
    def axis(self) -> float | None:
        """`centre`, in bins after averaging."""
        return None if self.centre is None else (self.centre - (self.binning - 1) / 2) / self.binning


def line_integrals(counts: np.ndarray, flat: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """`-log((counts - dark) / (flat - dark))` (Beer & Lambert), float32.

    Counts at or below the dark field, of which there is no logarithm, become the smallest transmission of their view
    that is positive. Bins without signal in the flat field are interpolated from their neighbours in the row.

    Args:
        counts: `(views, rows, bins)`.
        flat: mean of the images without the object, `(rows, bins)`.
        dark: mean of the images without the beam, `(rows, bins)`.

    Raises:
        InputError: the shapes differ, or a view or a row has no signal.
    """
    if not counts.shape[1:] == flat.shape == dark.shape:
        raise InputError(f"projections of {counts.shape[1:]}, flat field {flat.shape}, dark field {dark.shape}")
    gain = (flat - dark).astype(np.float32)
    if not np.isfinite(gain).all() or not (gain > 0).any(1).all():
        raise InputError("a row of the flat field is not brighter than the dark field; leave these slices out")
    transmission = (counts - dark.astype(np.float32)) / np.where(gain > 0, gain, 1)
    transmission = np.where((gain > 0) & np.isfinite(transmission), transmission, np.nan)
    positive = np.where(transmission > 0, transmission, np.inf).min((1, 2), keepdims=True)
    if not np.isfinite(positive).all():
        raise InputError(f"view {int(np.argmax(~np.isfinite(positive)))} has no counts above the dark field")
    integrals = -np.log(np.fmax(transmission, positive))
    bins = np.arange(gain.shape[1])
    for row in np.flatnonzero((gain <= 0).any(1)):
        alive = gain[row] > 0
        for view in integrals[:, row]:
            view[~alive] = np.interp(bins[~alive], bins[alive], view[alive])
    return integrals.astype(np.float32)


def certainty(counts: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """The inverse of the noise's standard deviation in line integrals, in units of the most certain one, float32.

    A count `N` of photons has the variance `N`, so `log N` has `1 / N`. At least a hundredth remains, so that no ray is
    lost altogether.

    Args:
        counts: `(views, rows, bins)`.
        dark: mean of the images without the beam, `(rows, bins)`.
    """
    bright = np.sqrt(np.nan_to_num(np.fmax(counts - dark.astype(np.float32), 0), posinf=0))
    return np.fmax(bright / max(float(bright.max(initial=0)), np.finfo(np.float32).tiny), LEAST).astype(np.float32)


def axis_of_rotation(sinogram: np.ndarray, angles: np.ndarray) -> float:
    """The bin that the axis of rotation projects onto, with fractions, of parallel-beam data.

    From views in opposite directions, one mirrored, which match best where the mirror is the axis. This also works if
    the object is larger than the detector. Without such views, from the centre of mass of each view, which is a
    sinusoid around the axis (the first moment of Helgason & Ludwig's consistency conditions); it needs all of the
    object.

    Args:
        sinogram: line integrals, `(slices, views, bins)`.
        angles: of the views, radians.
    """
    turn = np.abs(np.angle(np.exp(1j * (angles[:, None] - angles + np.pi))))  # from being opposite
    step = np.median(np.abs(np.diff(angles))) if len(angles) > 1 else 0.0
    first, second = np.nonzero(np.triu(turn <= OPPOSITE * step + 1e-9, 1))
    if len(first):
        order = np.argsort(turn[first, second])[:8]
        pairs = [mirror(sinogram[:, first[i]], sinogram[:, second[i]]) for i in order]
        return float(np.median(pairs))
    mass = sinogram.sum(2)
    centre = (sinogram * np.arange(sinogram.shape[2])).sum(2) / np.where(mass == 0, 1, mass)
    waves = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], 1)
    return float(np.median(np.linalg.lstsq(waves, centre.T, rcond=None)[0][0]))


def mirror(view: np.ndarray, opposite: np.ndarray) -> float:
    """The bin at which one of two views `(rows, bins)` has to be mirrored to match the other."""
    bins = view.shape[1]
    edges, others = np.diff(view), np.diff(opposite)  # a slope of the background does not matter
    length = 2 * edges.shape[1]
    spectrum = np.fft.rfft(edges, length) * np.fft.rfft(others, length)
    match = -np.fft.irfft(spectrum.sum(0), length)  # of the view with the mirrored other one, for each mirror
    best = int(match[: length - 1].argmax())
    before, here, after = match[best - 1], match[best], match[(best + 1) % length]
    curvature = before - 2 * here + after
    peak = best + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)
    return float(np.clip((peak + 1) / 2, 0, bins - 1))


def tomography(
    name: str,
    counts: np.ndarray,
    flat: np.ndarray,
    dark: np.ndarray,
    angles: np.ndarray,
    detector: Detector,
    kept: slice,
    bin_width: float | None,
    row_height: float | None,
) -> Recording:
    """Parallel-beam tomography with a plane detector, whose rows become slices.

    Args:
        name: of the scan.
        counts: `(views, rows, bins)`, averaged by the detector.
        flat: mean of the images without the object, `(rows, bins)`.
        dark: mean of the images without the beam, `(rows, bins)`.
        angles: of the views, radians.
        detector: how they were read.
        kept: rows that become slices.
        bin_width: of the detector before averaging, in mm; by default 1.
        row_height: in mm; by default that of a bin.

    Raises:
        InputError: angles, axis or images do not fit together.
    """
    views, _, bins = counts.shape
    if angles.shape != (views,) or not np.isfinite(angles).all():
        raise InputError(f"{views} projections with angles of shape {angles.shape}; expected an angle for each")
    sinogram = detector.upright(line_integrals(counts, flat, dark))[:, kept].transpose(1, 0, 2)
    weights = detector.upright(certainty(counts, dark))[:, kept].transpose(1, 0, 2)
    axis, step = detector.axis, detector.binning
    if axis is None:
        axis = axis_of_rotation(sinogram, angles)
        found = axis * step + (step - 1) / 2
        log.info("%s: the axis of rotation is estimated at bin %.2f of %d (data.centre)", name, found, bins * step)
    if not 0 <= axis <= bins - 1:
        raise InputError(f"data.centre is {detector.centre:g}; expected a bin of the detector, 0 .. {bins * step - 1}")
    width = step * (bin_width or 1.0)
    described: Mapping[str, Any] = {
        "angles": angles, "detector_spacing": width, "pixel_size": width, "image_size": bins,
        "detector_offset": ((bins - 1) / 2 - axis) * width,
    }  # fmt: skip
    return Recording(
        name=name, operator=ParallelBeamCT, data=sinogram, description=described, units="1/mm",
        certainty=weights, slice_spacing=step * (row_height or bin_width or 1.0),
    )  # fmt: skip


def field(dataset: h5py.Dataset | None, rows: slice, shape: tuple[int, ...], default: float) -> np.ndarray:
    """The mean of some images `(images, rows, bins)` of a detector; a constant if there are none.

    Raises:
        InputError: the images have another shape.
    """
    if dataset is None:
        return np.full((rows.stop - rows.start, shape[2]), default, np.float32)
    if dataset.ndim != 3 or dataset.shape[1:] != shape[1:] or len(dataset) == 0:
        raise InputError(f"{dataset.name} has shape {dataset.shape}; expected (images, {shape[1]}, {shape[2]})")
    return np.asarray(dataset[:, rows].mean(0), np.float32)


def in_millimetres(dataset: h5py.Dataset | None) -> float | None:
    """A length in mm, by its `units` (metres by default, as in NeXus); None if there is none.

    Raises:
        InputError: it is not one positive number, or the units are unknown.
    """
    if dataset is None:
        return None
    units = text(dataset.attrs.get("units", "m"))
    if dataset.dtype.kind not in "iuf" or dataset.size != 1 or units not in MILLIMETRES:
        raise InputError(
            f"{dataset.name} of {dataset.dtype} in {units!r}; expected a number in {', '.join(MILLIMETRES)}"
        )
    length = float(np.ravel(dataset[()])[0]) * MILLIMETRES[units]
    if not (np.isfinite(length) and length > 0):
        raise InputError(f"{dataset.name} is {length:g} mm; expected a positive length")
    return length


def in_radians(values: np.ndarray, units: str) -> np.ndarray:
    """Angles in radians.

    Raises:
        InputError: the units are unknown.
    """
    if not units.startswith(("deg", "rad", "°")):
        raise InputError(f"angles in units of {units!r}; expected degrees or radians")
    return values.astype(np.float64) if units.startswith("rad") else np.radians(values.astype(np.float64))


def text(value: Any) -> str:
    """A text from an HDF5 attribute or dataset."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
