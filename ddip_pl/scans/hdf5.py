"""Our own files with measurements: HDF5 in the layout that docs/measurements.md documents."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ddip_pl.physics  # noqa: F401 (whose operators are found by their kind)
from ddip_pl.errors import InputError
from ddip_pl.physics.description import numbers
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.frame import Frame
from ddip_pl.volumes.slices import span

VERSION = 1
COMMON = (
    "version", "operator", "name", "units", "sigma_y", "rescale_slope", "rescale_intercept", "slice_spacing", "margin",
    "data", "affine",
)  # fmt: skip
SLICES = "slices"  # first axis of data where each slice is measured by itself
PER_SLICE = 3  # axes of an array that may have one part for each slice


def write_measurement(path: str | Path, measurement: Measurement, frame: Frame) -> None:
    """Write a measurement in the units of the scanner: `y` times `operator.unit` and the width of the `window`.

    Its reconstructions will have the intensities of `window` again. The reference is not written.

    Raises:
        InputError: there is no layout for the operator, or not for such pixels, or another file is in the way.
    """
    path = Path(path)
    content = layout(measurement, frame)
    if path.exists() and not is_own(path):
        raise InputError(f"{path} exists and holds no measurement of ours; choose another name")
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
    """What the file of a measurement holds: arrays, which become datasets, and attributes."""
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
    """Whether a file is one of ours."""
    try:
        with h5py.File(path) as file:
            return "operator" in file.attrs
    except OSError:
        return False


def contents(file: h5py.Group) -> str:
    """Names and shapes of the datasets of a file."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(f"'{name}' {item.shape}") if hasattr(item, "shape") else None)
    return ", ".join(found[:8]) or "no datasets"


def read_own(file: h5py.File, slices: int | None, first: int | None) -> Recording:
    """Read a file of ours; messages do not name it.

    Raises:
        InputError: something is missing, or does not fit.
    """
    attributes, name = dict(file.attrs), str(file.attrs.get("name", Path(file.filename).stem))
    datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset) and is_numeric(item)}
    [version] = numbers(attributes, "version", 1, (VERSION,))
    if version != VERSION:
        raise InputError(f"layout {version:g}, this ddip-pl reads {VERSION}; update the older of both")
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"attribute 'name' is {name!r}; expected one that a folder can have")
    if "data" not in datasets:
        raise InputError(f"no dataset 'data' of numbers; it has {contents(file)}")
    operator = operator_of(str(attributes["operator"]))
    if operator.axes[:1] != (SLICES,) and (slices, first) != (None, None):
        raise InputError("slices that are measured together; leave out data.slices and data.first")
    data = datasets["data"]
    depth = data.shape[0] if data.ndim else 0
    chosen = span(depth, first, slices, "the file")

    def of_chosen(values: h5py.Dataset) -> Any:
        """An array that all slices have in common, or the part of the chosen ones."""
        each = values.ndim >= PER_SLICE and len(values) == depth > 1
        return values[chosen if each else ()]

    affine = np.array(datasets["affine"], np.float64) if "affine" in datasets else None
    if affine is not None and affine.shape == (4, 4):
        affine[:, 3] += chosen.start * affine[:, 2]
    [slope], [intercept] = (
        numbers(attributes, "rescale_slope", 1, (1,)),
        numbers(attributes, "rescale_intercept", 1, (0,)),
    )
    [spacing] = numbers(attributes, "slice_spacing", 1, (1,))
    top, bottom, left, right = map(int, numbers(attributes, "margin", 4, (0, 0, 0, 0)))
    described = {name: value for name, value in attributes.items() if name not in COMMON}
    return Recording(
        name=name,
        operator=operator,
        data=data[chosen],
        description=described | {key: of_chosen(each) for key, each in datasets.items() if key not in COMMON},
        sigma_y=numbers(attributes, "sigma_y", 1)[0] if "sigma_y" in attributes else float("nan"),
        affine=affine,
        slice_spacing=spacing,
        margin=(top, bottom, left, right),
        units=str(attributes.get("units", "")),
        slope=slope,
        intercept=intercept,
    )


def is_numeric(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is of numbers."""
    return dataset.dtype.kind in "biufc"


def operator_of(kind: str) -> type[LinearOperator]:
    """The operator of a kind.

    Raises:
        InputError: there is none.
    """
    classes = reversed(list(subclasses(LinearOperator)))  # type: ignore[type-abstract]
    found = {cls.kind: cls for cls in classes if cls.__dict__.get("kind")}
    if kind not in found:
        raise InputError(
            f"attribute 'operator' is {kind!r}; expected one of {', '.join(sorted(found))}; import the module of your "
            "own operator first"
        )
    return found[kind]


def subclasses(cls: type[LinearOperator]) -> Iterator[type[LinearOperator]]:
    """All of them, the subclasses of a class after itself."""
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)
