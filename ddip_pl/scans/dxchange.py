"""Data Exchange (De Carlo et al. 2014), the HDF5 layout of tomography at synchrotrons."""

from pathlib import Path

import h5py
import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.scans.counts import Detector, field, in_millimetres, in_radians, text, tomography
from ddip_pl.scans.recording import Recording

DETECTOR = "measurement/instrument/detector"


def is_dxchange(file: h5py.File) -> bool:
    """Whether a file has a dataset `exchange/data`."""
    return isinstance(file.get("exchange/data"), h5py.Dataset)


def read_dxchange(file: h5py.File, slices: int | None, first: int | None, detector: Detector) -> Recording:
    """Read `exchange/data (views, rows, bins)`, `data_white`, `data_dark` and `theta` in degrees.

    Without `theta`, the views are evenly spaced over 180 degrees. Without `data_white`, the data are transmissions.

    Args:
        file: open for reading.
        slices: number of detector rows, by default all.
        first: index of the first row; by default the rows are the central ones.
        detector: how they are read.

    Raises:
        InputError: a dataset is missing or inconsistent.
    """
    exchange, data = file["exchange"], file["exchange/data"]
    if data.ndim != 3 or data.dtype.kind not in "iuf":
        raise InputError(f"exchange/data is {data.shape} of {data.dtype}; expected (views, rows, bins), real")
    rows, kept = detector.rows(data.shape[1], first, slices)
    flat, dark = (
        detector.binned(field(exchange.get("data_white"), rows, data.shape, 1)),
        detector.binned(field(exchange.get("data_dark"), rows, data.shape, 0)),
    )
    theta = exchange.get("theta")
    if theta is None:
        angles = np.linspace(0, np.pi, len(data), endpoint=False)
    else:
        angles = in_radians(np.ravel(theta[()]), text(theta.attrs.get("units", "degrees")))
    width, height = (in_millimetres(file.get(f"{DETECTOR}/pixel_size_{axis}")) for axis in "xy")
    views = range(0, len(data), detector.every)
    counts = detector.projections(data[view, rows] for view in views)
    return tomography(
        Path(file.filename).stem, counts, flat, dark, angles[:: detector.every], detector, kept, width, height
    )
