"""BART's files (Uecker et al. 2015): `NAME.hdr` with the dimensions and `NAME.cfl` with the values."""

from math import prod
from pathlib import Path

import numpy as np
from einops import rearrange

from ddip_pl.errors import InputError, reason
from ddip_pl.physics.coils import MultiCoilMRI
from ddip_pl.physics.fft import ifft
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.physics.operator import Description
from ddip_pl.scans.counters import Counters
from ddip_pl.scans.oversampling import UNITS
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.frame import Frame
from ddip_pl.volumes.slices import span

SUFFIXES = (".cfl", ".hdr")
READ, PHASE_1, PHASE_2, COIL, ECHO, TIME, TIME_2, SLICE, AVERAGE, DIMENSIONS = 0, 1, 2, 3, 5, 10, 11, 13, 14, 16
ROUNDING = 1e-3  # of the positions of samples, in cycles per field of view
TRAJECTORY, MAPS = "_traj", "_maps"  # after the name, for the files with sample positions and coil maps


def read_cfl(path: Path) -> np.ndarray:
    """The values of a file, with 16 axes, complex64; read when needed.

    Raises:
        InputError: the header is missing or damaged, or the number of values is another.
    """
    header, values = (path.with_suffix(suffix) for suffix in (".hdr", ".cfl"))
    try:
        lines = header.read_text().splitlines()
        given = [int(word) for word in lines[lines.index("# Dimensions") + 1].split()]
        shape = (*given, *[1] * (DIMENSIONS - len(given)))
        if len(shape) != DIMENSIONS or min(shape) < 1 or prod(shape) * 8 != values.stat().st_size:
            raise ValueError(f"dimensions {given}, {values.stat().st_size} bytes in {values.name}")
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{header.name}, {values.name}: missing, damaged, or not BART's ({reason(error)})") from error
    return np.memmap(values, np.complex64, "r", shape=shape, order="F")


def write_cfl(path: str | Path, values: np.ndarray) -> None:
    """Write values with up to 16 axes, in BART's order: readout, two phase encodings, coils, ...

    Raises:
        InputError: the files cannot be written.
    """
    path, shape = Path(path), (*values.shape, *[1] * (DIMENSIONS - values.ndim))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, shape))}\n")
        values.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def bart_volumes(path: Path, wanted: Counters) -> list[Counters]:
    """The volumes in a file that have the wanted counters: echoes (contrast), times (repetition, phase).

    Raises:
        InputError: there are none, or the files are damaged.
    """
    shape = read_cfl(path).shape
    return wanted.of(
        [
            Counters(contrast=echo, repetition=time, phase=phase)
            for echo in range(shape[ECHO])
            for time in range(shape[TIME])
            for phase in range(shape[TIME_2])
        ]
    )


def read_bart(path: Path, slices: int | None, first: int | None, wanted: Counters) -> Recording:
    """Read one image: k-space on a grid, 0 where not measured, or along the trajectory in `NAME_traj`.

    Coil maps are read from `NAME_maps` if it exists. Pixels are 1 mm wide. Averages are averaged. The second phase
    encoding of a grid must be complete; it becomes slices.

    Raises:
        InputError: the files are damaged, have no such image or several, or are not supported.
    """
    values = read_cfl(path)
    [volume, *others] = bart_volumes(path, wanted)
    if others:
        raise InputError(f"{len(others) + 1} volumes ({volume}, ...); choose one (data.volume)")
    for axis, counter in (ECHO, volume.contrast), (TIME, volume.repetition), (TIME_2, volume.phase):
        values = values.take([counter or 0], axis)
    used = (READ, PHASE_1, PHASE_2, COIL, SLICE, AVERAGE)
    if extra := {axis: length for axis, length in enumerate(values.shape) if length > 1 and axis not in used}:
        raise InputError(f"lengths of BART's dimensions {extra}; expected 1 except in {used}, echoes and times")
    kspace = averaged(np.asarray(values.transpose(*used, *(axis for axis in range(DIMENSIONS) if axis not in used))))
    files = (beside(path, TRAJECTORY), beside(path, MAPS))
    trajectory, maps = (read_cfl(file) if file.exists() else None for file in files)
    if trajectory is None and kspace.shape[2] > 1:
        if kspace.shape[4] > 1:
            raise InputError(f"k-space {kspace.shape[:5]} with partitions and slices; expected one of them")
        measured = (kspace != 0).any(3)
        if (measured != measured[:, :, :1]).any():
            raise InputError("partitions are not measured alike; transform the complete axis first, with bart fft -i")
        kspace = rearrange(ifft(kspace, (2,)), "x y z c 1 -> x y 1 c z")
    chosen = span(kspace.shape[4], first, slices, "the file")
    data = rearrange(kspace[..., chosen], "x y z c s -> s c x y z")
    described: Description = {} if maps is None else {"coil_maps": selected(coil_maps(maps), chosen)}
    name = volume.name(path.stem)
    if trajectory is not None:
        described |= along(trajectory, data.shape, None if maps is None else maps.shape[0])
        data = rearrange(data, "s c 1 n m -> s c (m n)")
        return Recording(name=name, operator=NonCartesianMRI, data=data, units=UNITS, description=described)
    described["field_of_view"] = data.shape[2:4]
    return Recording(name=name, operator=CartesianMRI, data=data[..., 0], units=UNITS, description=described)


def selected(maps: np.ndarray, chosen: slice) -> np.ndarray:
    """The maps of the chosen slices, or those that all slices share."""
    return maps if len(maps) == 1 else maps[chosen]


def coil_maps(maps: np.ndarray) -> np.ndarray:
    """Coil maps in BART's order, partitions or slices, as `(slices, coils, x, y)`.

    Raises:
        InputError: there are several sets of them.
    """
    used = (READ, PHASE_1, PHASE_2, COIL, SLICE)
    if maps.size != prod(maps.shape[axis] for axis in used):
        raise InputError(f"coil maps {maps.shape}; expected one set (bart ecalib -m1)")
    others = (axis for axis in range(DIMENSIONS) if axis not in used)
    values = np.asarray(maps.transpose(*used, *others)).reshape([maps.shape[axis] for axis in used])
    return rearrange(values, "x y z c s -> (s z) c x y")


def averaged(kspace: np.ndarray) -> np.ndarray:
    """`(x, y, z, coils, slices)`: the mean over averages, of those that measure a value."""
    values: np.ndarray = kspace.reshape(kspace.shape[:6])
    count = (values != 0).any(3, keepdims=True).sum(5)
    return values.sum(5) / np.maximum(count, 1)


def along(trajectory: np.ndarray, data: tuple[int, ...], size: int | None) -> Description:
    """The description of a trajectory `(3, samples, spokes)` in cycles per field of view.

    Args:
        trajectory: see above.
        data: shape of the samples, `(slices, coils, 1, samples, spokes)`.
        size: of the image, if known; by default the smallest that holds the trajectory.

    Raises:
        InputError: the positions do not fit the samples, or are not in a plane.
    """
    if trajectory.size != 3 * prod(data[2:]) or trajectory.shape[:3] != (3, *data[3:]):
        raise InputError(
            f"trajectory {trajectory.shape}, samples {data[2:]}; expected (3, samples, spokes), the same for all "
            "slices, and (1, samples, spokes)"
        )
    positions: np.ndarray = np.asarray(trajectory).reshape(3, *data[3:]).real
    if np.abs(positions[2]).max() > 0:
        raise InputError("a trajectory in three dimensions; expected one in the plane of the slices")
    size = size or 2 * max(1, int(np.ceil(np.abs(positions).max() - ROUNDING)))
    return {"trajectory": rearrange(positions[:2], "k n m -> (m n) k") / size, "pixel_size": 1.0, "image_size": size}


def write_bart(path: Path, measurement: Measurement, frame: Frame) -> None:
    """Write a measurement in the scanner's units: k-space, `NAME_maps` with the coil maps, and `NAME_traj`.

    `bart pics [-t NAME_traj] NAME NAME_maps OUTPUT` reconstructs it.

    Raises:
        InputError: it is not k-space, or the files cannot be written.
    """
    operator, (low, high) = measurement.operator, frame.window
    if not isinstance(operator, MultiCoilMRI):
        raise InputError(
            f"BART's files hold k-space, not measurements by {type(operator).__name__}; give a name in .h5"
        )
    width, height, _ = frame.spacing
    data = measurement.y.numpy(force=True) * np.float32(operator.unit((height, width)) * (high - low))
    if isinstance(operator, NonCartesianMRI):
        positions = operator.trajectory.numpy(force=True) * operator.shape[1] / (2 * np.pi)
        write_cfl(beside(path, TRAJECTORY), np.stack([*positions, 0 * positions[0]])[:, :, None])
        write_cfl(path, in_slices(rearrange(data, "s c n -> 1 n 1 c s")))
    else:
        write_cfl(path, in_slices(rearrange(data, "s c x y -> x y 1 c s")))
    maps = operator.coil_maps.expand(len(measurement), -1, -1, -1).numpy(force=True)
    write_cfl(beside(path, MAPS), in_slices(rearrange(maps, "s c x y -> x y 1 c s")))


def in_slices(values: np.ndarray) -> np.ndarray:
    """Values `(x, y, z, coils, slices)` with the slices where BART has them."""
    return np.expand_dims(values, tuple(range(4, SLICE)))


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to another: its name, followed by the suffix."""
    return path.with_name(f"{path.stem}{suffix}.cfl")
