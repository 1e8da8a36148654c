"""Our own measurement files: HDF5 in the layout described in docs/measurements.md."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ddip_pl.physics  # noqa: F401 (its operators are found by their kind)
from ddip_pl.errors import InputError
from ddip_pl.physics.description import numbers
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.frame import Frame
from ddip_pl.volumes.hdf5 import attributes
from ddip_pl.volumes.slices import span

VERSION = 1
COMMON = (
    "version", "operator", "name", "units", "sigma_y", "rescale_slope", "rescale_intercept", "slice_spacing", "margin",
    "data", "affine",
)  # fmt: skip
SLICES = "slices"  # first axis of the data of an operator that measures each slice separately
PER_SLICE = 3  # an array with at least this many axes may have one entry per slice


def write_measurement(path: str | Path, measurement: Measurement, frame: Frame) -> None:
    """Write a measurement in the scanner's units: `y` times `operator.unit` and the width of the `window`.

    Reconstructions from the file have the intensities of `window` again. The reference is not written.

    Raises:
        InputError: the operator, or its pixel size, has no file layout; `path` is another kind of file; or it cannot be
            written.
    """
    path = Path(path)
    content = layout(measurement, frame)
    if path.exists() and not is_own(path):
        raise InputError(f"{path} exists and is not a ddip-pl measurement; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
            complete = Path(temporary, path.name)
            with h5py.File(complete, "w") as file:
                for name, value in content.items():
                    (file if isinstance(value, np.ndarray) else file.attrs)[name] = value
            os.replace(complete, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def layout(measurement: Measurement, frame: Frame) -> dict[str, Any]:
    """Contents of a measurement's file: arrays become datasets, everything else attributes."""
    operator, (low, high) = measurement.operator, frame.window
    width, height, _ = frame.spacing
    description = operator.describe((height, width))
    unit = operator.unit((height, width)) * (high - low)
    y = measurement.y.squeeze(1) if measurement.y.ndim > len(operator.axes) else measurement.y
    sigma_y = {"sigma_y": measurement.sigma_y * unit} if measurement.sigma_y >= 0 else {}
    common = {
        "version": VERSION, "operator": operator.kind, "name": frame.name, "units": frame.units,
        "rescale_intercept": low, "margin": frame.margin, "affine": frame.affine,
        "data": y.numpy(force=True) * np.float32(unit),
    }  # fmt: skip
    return common | sigma_y | description


def is_own(path: Path) -> bool:
    """Whether a file has our own layout."""
    try:
        with h5py.File(path) as file:
            return "operator" in file.attrs
    except Exception:  # on a damaged file the reader may raise anything
        return False


def contents(file: h5py.Group) -> str:
    """Names and shapes of the first datasets in a file."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(f"'{name}' {item.shape}") if hasattr(item, "shape") else None)
    return ", ".join(found[:8]) or "no datasets"


def read_own(file: h5py.File, slices: int | None, first: int | None) -> Recording:
    """Read a file in our own layout. Error messages do not name the file.

    Raises:
        InputError: an entry is missing or inconsistent.
    """
    given = attributes(file)
    name = str(given.get("name", Path(file.filename).stem))
    datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset) and is_numeric(item)}
    [version] = numbers(given, "version", 1, (VERSION,))
    if version != VERSION:
        raise InputError(f"layout version {version:g}, but this ddip-pl reads {VERSION}; update whichever is older")
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"attribute 'name' is {name!r}; expected a valid folder name")
    if "data" not in datasets:
        raise InputError(f"no numeric dataset 'data'; the file has {contents(file)}")
    operator = operator_of(str(given["operator"]))
    if operator.axes[:1] != (SLICES,) and (slices, first) != (None, None):
        raise InputError("the slices were measured together; leave out data.slices and data.first")
    data = datasets["data"]
    depth = data.shape[0] if data.ndim else 0
    chosen = span(depth, first, slices, "the file")

    def of_chosen(values: h5py.Dataset) -> Any:
        """An array shared by all slices, or the chosen slices' part of one with an entry per slice."""
        each = values.ndim >= PER_SLICE and len(values) == depth > 1
        return values[chosen if each else ()]

    affine = np.array(datasets["affine"], np.float64) if "affine" in datasets else None
    if affine is not None and affine.shape == (4, 4):
        affine[:, 3] += chosen.start * affine[:, 2]
    [slope], [intercept] = (
        numbers(given, "rescale_slope", 1, (1,)),
        numbers(given, "rescale_intercept", 1, (0,)),
    )
    [spacing] = numbers(given, "slice_spacing", 1, (1,))
    top, bottom, left, right = map(int, numbers(given, "margin", 4, (0, 0, 0, 0)))
    described = {name: value for name, value in given.items() if name not in COMMON}
    return Recording(
        name=name,
        operator=operator,
        data=data[chosen],
        description=described | {key: of_chosen(each) for key, each in datasets.items() if key not in COMMON},
        sigma_y=numbers(given, "sigma_y", 1)[0] if "sigma_y" in given else float("nan"),
        affine=affine,
        slice_spacing=spacing,
        margin=(top, bottom, left, right),
        units=str(given.get("units", "")),
        slope=slope,
        intercept=intercept,
    )


def is_numeric(dataset: h5py.Dataset) -> bool:
    """Whether a dataset contains numbers."""
    return dataset.dtype.kind in "biufc"


def operator_of(kind: str) -> type[LinearOperator]:
    """The operator class of this kind.

    Raises:
        InputError: there is none.
    """
    classes = reversed(list(subclasses(LinearOperator)))  # type: ignore[type-abstract]
    found = {cls.kind: cls for cls in classes if cls.__dict__.get("kind")}
    if kind not in found:
        raise InputError(
            f"attribute 'operator' is {kind!r}; expected one of {', '.join(sorted(found))}; import the module of "
            "your own operator (predict: --plugins MODULE --data.operator MODULE.CLASS)"
        )
    return found[kind]


def subclasses(cls: type[LinearOperator]) -> Iterator[type[LinearOperator]]:
    """All direct and indirect subclasses, each before its own."""
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)
