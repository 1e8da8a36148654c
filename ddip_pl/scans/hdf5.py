"""Files with what a scanner measured: our own HDF5 layout, and those of others, told apart by what is in them.

The layout is documented in docs/measurements.md.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddip_pl.data.simulated import span
from ddip_pl.errors import InputError, reason
from ddip_pl.physics.ct import FanBeamCT, ParallelBeamCT
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.mri import SENSE, CartesianMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.scans.acquisition import Acquisition
from ddip_pl.scans.fastmri import read_array, read_fastmri
from ddip_pl.scans.ismrmrd import is_ismrmrd, read_ismrmrd
from ddip_pl.scans.kspace import KSpace, NonCartesianKSpace
from ddip_pl.scans.sinogram import FanBeamSinogram, Sinogram

VERSION = 1
OPERATORS = ("parallel_beam", "fan_beam", "cartesian", "non_cartesian")
ISOTROPIC = 0.05  # relative difference of height and width up to which a pixel counts as square


def write_measurement(path: str | Path, measurement: Measurement) -> None:
    """Write a measurement in the units of the scanner, `scale * y * (window[1] - window[0])`, and times mm in CT.

    What is made of it later has the intensities of `window` again. The reference is not written.

    Raises:
        InputError: there is no layout for the operator, pixels of CT or along a trajectory are not square, or another
            file is in the way.
    """
    path = Path(path)
    datasets, attributes = _layout(measurement)
    if path.exists() and not _is_ours(path):
        raise InputError(f"{path} exists and holds no measurement of ours; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
            complete = Path(temporary, path.name)
            with h5py.File(complete, "w") as file:
                file.attrs.update(attributes)
                for name, values in datasets.items():
                    file[name] = values
            os.replace(complete, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _layout(measurement: Measurement) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Datasets and attributes of a measurement's file."""
    operator, (low, high) = measurement.operator, measurement.window
    height, width = (float(measurement.affine[:3, axis].norm()) for axis in (1, 0))  # of a pixel
    pixel, unit = (height * width) ** 0.5, operator.scale * (high - low)
    datasets: dict[str, np.ndarray] = {"affine": measurement.affine.numpy()}
    attributes: dict[str, Any] = {
        "version": VERSION, "name": measurement.name, "units": measurement.units, "rescale_intercept": low,
        "margin": measurement.margin,
    }  # fmt: skip
    if not isinstance(operator, CartesianMRI) and abs(height - width) > ISOTROPIC * width:
        what = "trajectories" if isinstance(operator, NonCartesianMRI) else "sinograms"
        raise InputError(f"pixels of {height:g} x {width:g} mm; {what} need square ones, see data.plane")
    y = measurement.y
    if isinstance(operator, ParallelBeamCT | FanBeamCT):
        y, unit = y[:, 0], unit * pixel
        datasets |= {"angles": operator.angles}
        attributes |= {
            "operator": "parallel_beam", "image_size": operator.image_size, "pixel_size": pixel,
            "detector_spacing": operator.spacing * pixel,
        }  # fmt: skip
        if isinstance(operator, FanBeamCT):
            source, detector = (distance * operator.image_size * pixel for distance in operator.distances)
            attributes |= {"operator": "fan_beam", "source_distance": source, "detector_distance": detector}
    elif isinstance(operator, CartesianMRI):
        rows, columns = operator.shape
        datasets |= {"mask": operator.mask[:, 0].numpy(force=True)}
        attributes |= {
            "operator": "cartesian", "channels": operator.channels, "field_of_view": (rows * height, columns * width),
        }  # fmt: skip
    elif isinstance(operator, NonCartesianMRI):
        datasets |= {
            "trajectory": operator.trajectory.T.numpy(force=True).astype(np.float64) / (2 * np.pi * pixel),
            "density_compensation": operator.density.numpy(force=True),
        }
        attributes |= {"operator": "non_cartesian", "image_size": operator.image_size, "pixel_size": pixel}
    else:
        raise InputError(f"no file layout for measurements by {type(operator).__name__}; see docs/measurements.md")
    if isinstance(operator, SENSE | NonCartesianMRI):
        datasets["coil_maps"] = operator.coil_maps.numpy(force=True)
    datasets["data"] = y.numpy(force=True) * np.float32(unit)
    if measurement.sigma_y >= 0:
        attributes["sigma_y"] = measurement.sigma_y * unit
    return datasets, attributes


def read_measurement(
    path: str | Path, slices: int | None = None, first: int | None = None, calibration: int = 24
) -> Measurement:
    """Read what a scanner measured: HDF5 of our own layout, of ISMRMRD or of fastMRI, or a NumPy array of k-space.

    Several coils without maps are calibrated by ESPIRiT.

    Args:
        path: the file.
        slices: number of slices, the central ones; by default all.
        first: index of the first slice, where not the central ones are wanted.
        calibration: width of the centre of k-space that coil maps are calibrated from, at most.

    Returns:
        The measurement of an image in the units of the scanner, of any intensity. `sigma_y` is nan where the file does
        not tell it.

    Raises:
        InputError: the file is missing, damaged or of no known format, or something in it does not fit.
    """
    return _read(Path(path), slices, first).measurement(calibration)


def _read(path: Path, slices: int | None, first: int | None) -> Acquisition:
    if not path.is_file():
        raise InputError(f"measurement {path}: no such file; give HDF5 (.h5), or k-space as a NumPy array (.npy)")
    if path.name.lower().endswith((".nii", ".nii.gz", ".dcm")):
        raise InputError(f"measurement {path}: an image, and no measurement; ddip-pl test or ddip-pl simulate take it")
    if path.suffix == ".npy":
        return read_array(path, slices, first)
    with _opened(path) as file:
        if "operator" in file.attrs:
            return _read_own(path, file, slices, first)
        if "kspace" in file:
            return read_fastmri(path, file, slices, first)
        if is_ismrmrd(file):
            return read_ismrmrd(path, file, slices, first)
        raise InputError(
            f"measurement {path}: neither our attribute 'operator' nor fastMRI's dataset 'kspace' nor ISMRMRD's group "
            f"with 'xml' and 'data'; it has {_contents(file)}; see docs/measurements.md"
        )


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise InputError(f"measurement {path}: damaged, or no HDF5 file ({reason(error)})") from error


def _is_ours(path: Path) -> bool:
    try:
        with h5py.File(path) as file:
            return "operator" in file.attrs
    except OSError:
        return False


def _contents(file: h5py.Group) -> str:
    """Names and shapes of the datasets of a file."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(f"'{name}' {item.shape}") if hasattr(item, "shape") else None)
    return ", ".join(found[:8]) or "no datasets"


def _read_own(path: Path, file: h5py.File, slices: int | None, first: int | None) -> Acquisition:
    source, attributes = f"measurement {path}", file.attrs

    def dataset(name: str) -> h5py.Dataset:
        if not isinstance(file.get(name), h5py.Dataset) or file[name].dtype.kind not in "biufc":
            raise InputError(f"{source}: no dataset '{name}' of numbers; it has {_contents(file)}")
        return file[name]

    def numbers(name: str, count: int, default: tuple[float, ...] = ()) -> tuple[float, ...]:
        given = attributes.get(name, default)
        try:
            values = tuple(float(value) for value in np.atleast_1d(given))
        except (TypeError, ValueError):
            values = ()
        if len(values) != count or (name != "sigma_y" and not np.isfinite(values).all()):
            what = f"is {given}" if name in attributes else "is missing"
            raise InputError(f"{source}: attribute '{name}' {what}; expected {count} number{'s'[: count > 1]}")
        return values

    [version] = numbers("version", 1, (VERSION,))
    if version != VERSION:
        raise InputError(f"{source}: layout {version:g}, this ddip-pl reads {VERSION}; update the older of both")
    name = str(attributes.get("name", path.stem))
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"{source}: attribute 'name' is {name!r}; expected one that a folder can have")
    data = dataset("data")
    depth = data.shape[0] if data.ndim else 0
    chosen = span(depth, first, slices, source)
    affine = np.array(dataset("affine"), np.float64) if "affine" in file else None
    if affine is not None and affine.shape == (4, 4):
        affine[:, 3] += chosen.start * affine[:, 2]
    [sigma_y], [slope] = numbers("sigma_y", 1, (float("nan"),)), numbers("rescale_slope", 1, (1.0,))
    [intercept], [spacing] = numbers("rescale_intercept", 1, (0.0,)), numbers("slice_spacing", 1, (1.0,))
    top, bottom, left, right = map(int, numbers("margin", 4, (0, 0, 0, 0)))
    common: dict[str, Any] = {
        "source": source, "name": name, "data": data[chosen], "sigma_y": sigma_y, "affine": affine,
        "slice_spacing": spacing, "margin": (top, bottom, left, right), "units": str(attributes.get("units", "")),
        "slope": slope, "intercept": intercept,
    }  # fmt: skip

    def optional(name: str, axes: int) -> np.ndarray | None:
        """One for all slices, or those of the chosen ones."""
        if name not in file:
            return None
        values = dataset(name)
        each = values.ndim == axes and len(values) == depth > 1
        return np.array(values[chosen] if each else values)

    kind = attributes["operator"]
    if kind == "cartesian":
        height, width = numbers("field_of_view", 2)
        rows, columns = data.shape[-2:] if data.ndim > 1 else (1, 1)
        [channels] = numbers("channels", 1, (2,))
        return KSpace(
            **common, pixel=(height / rows, width / columns), mask=optional("mask", 3),
            coil_maps=optional("coil_maps", 4), channels=int(channels),
        )  # fmt: skip
    if kind not in OPERATORS:
        raise InputError(f"{source}: attribute 'operator' is {kind!r}; expected one of {', '.join(OPERATORS)}")
    [pixel], [size] = (numbers(n, 1) for n in ("pixel_size", "image_size"))
    common |= {"pixel": (pixel, pixel), "image_size": int(size)}
    if kind == "non_cartesian":
        return NonCartesianKSpace(
            **common, trajectory=np.array(dataset("trajectory"), np.float64),
            density=optional("density_compensation", 2), coil_maps=optional("coil_maps", 4),
        )  # fmt: skip
    [spacing] = numbers("detector_spacing", 1)
    common |= {"angles": np.array(dataset("angles"), np.float64), "detector_spacing": spacing}
    if kind == "parallel_beam":
        return Sinogram(**common)
    [to_source], [to_detector] = (numbers(n, 1) for n in ("source_distance", "detector_distance"))
    return FanBeamSinogram(**common, source_distance=to_source, detector_distance=to_detector)
