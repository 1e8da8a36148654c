"""NXtomo (NeXus application definition), the HDF5 layout of tomography at synchrotrons and some laboratories."""

from pathlib import Path

import h5py
import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.scans.counts import Detector, in_millimetres, in_radians, text, tomography
from ddip_pl.scans.recording import Recording

PROJECTION, FLAT, DARK = 0, 1, 2  # values of image_key; 3 is invalid


def find_nxtomo(file: h5py.File) -> h5py.Group | None:
    """The first group whose `definition` is NXtomo, in the file or in one of its entries."""
    entries = [entry for entry in file.values() if isinstance(entry, h5py.Group)]
    groups = [each for entry in entries for each in (entry, *entry.values()) if isinstance(each, h5py.Group)]
    return next((group for group in groups if definition(group) == "NXtomo"), None)


def definition(group: h5py.Group) -> str:
    """The application definition that a group follows."""
    given = group.get("definition")
    return text(np.ravel(given[()])[0]) if isinstance(given, h5py.Dataset) and given.size == 1 else ""


def read_nxtomo(entry: h5py.Group, slices: int | None, first: int | None, detector: Detector) -> Recording:
    """Read `instrument/detector/data (images, rows, bins)`, its `image_key`, and `sample/rotation_angle`.

    Args:
        entry: the group of the definition.
        slices: number of detector rows, by default all.
        first: index of the first row; by default the rows are the central ones.
        detector: how they are read.

    Raises:
        InputError: a dataset is missing or inconsistent.
    """
    found = [
        entry.get(name)
        for name in ("instrument/detector/data", "instrument/detector/image_key", "sample/rotation_angle")
    ]
    if not all(isinstance(item, h5py.Dataset) for item in found):
        raise InputError(
            "NXtomo without instrument/detector/data, instrument/detector/image_key or sample/rotation_angle"
        )
    data, keys, rotation = found
    if data.ndim != 3 or data.dtype.kind not in "iuf" or not len(data) == keys.size == rotation.size:
        raise InputError(
            f"data of shape {data.shape}, {keys.size} image keys, {rotation.size} angles; expected (images, rows, "
            "bins), with a key and an angle for each image"
        )
    key = np.ravel(keys[()])
    if not (key == PROJECTION).any():
        raise InputError("no projection: image_key is nowhere 0")
    rows, kept = detector.rows(data.shape[1], first, slices)

    def mean(kind: int, default: float) -> np.ndarray:
        images = [data[image, rows] for image in np.flatnonzero(key == kind)]
        return np.mean(images, 0) if images else np.full((rows.stop - rows.start, data.shape[2]), default, np.float32)

    views = np.flatnonzero(key == PROJECTION)[:: detector.every]
    counts = detector.projections(data[view, rows] for view in views)
    flat, dark = detector.binned(mean(FLAT, 1)), detector.binned(mean(DARK, 0))
    angles = in_radians(np.ravel(rotation[()])[views], text(rotation.attrs.get("units", "degrees")))
    sizes = (in_millimetres(entry.get(f"instrument/detector/{axis}_pixel_size")) for axis in "xy")
    return tomography(Path(entry.file.filename).stem, counts, flat, dark, angles, detector, kept, *sizes)
