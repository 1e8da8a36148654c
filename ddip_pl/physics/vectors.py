"""Scan geometries given view by view, as ASTRA does: where the rays and the detector are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.physics.description import array, numbers
from ddip_pl.physics.operator import Description

ROUNDING = 1e-6  # largest relative difference of views of the same orbit
SLANTED = 1e-6  # largest slope of a ray that stays in its slice


class Orbit(NamedTuple):
    """A circular orbit around the middle of the volume, with a flat detector whose columns are parallel to the axis.

    The source and the detector need not face the axis. Lengths are in pixels.

    Attributes:
        angles: in radians; at 0 the source is at negative x and the detector's bins follow y.
        source: distance from the source to the axis, along the normal of the detector.
        focus: distance from the source to the detector.
        aside: position of the source along the bins, where 0 faces the axis.
        height: of the source, along the slices.
        u: positions of the bins, `(detectors,)`, like `aside`.
        v: positions of the rows, `(rows,)`, like `height`.
    """

    angles: np.ndarray
    source: float
    focus: float
    aside: float
    height: float
    u: np.ndarray
    v: np.ndarray


def circular_orbit(vectors: np.ndarray, rows: int, detectors: int) -> Orbit | None:
    """The circular orbit of a cone beam with these vectors, see `ConeBeamCT`; None if they describe another path."""
    source, middle, right, up = vectors.reshape(-1, 4, 3).swapaxes(0, 1)
    width = float(np.linalg.norm(right[0]))
    if not width > 0:
        return None
    if (source - middle)[0, :2] @ (right[0, 1::-1] * [1, -1]) > 0:
        width = -width  # the bins run the other way
    sideways = right[:, :2] / width
    forward = sideways[:, ::-1] * [1, -1]
    along = [(part[:, :2] * direction).sum(1) for part in (source, middle) for direction in (forward, sideways)]
    each = np.stack([*along, source[:, 2], middle[:, 2], up[:, 2]], axis=1)
    distance, aside, depth, across, height, level, step = each[0].tolist()
    straight = np.stack([right[:, 2], *up[:, :2].T, np.linalg.norm(sideways, axis=1) - 1], axis=1)
    moves, bends = np.abs(each - each[0]).max(), np.abs(straight).max()
    if moves > ROUNDING * np.abs(vectors).max() or bends > ROUNDING * np.abs(vectors[:, 6:]).max() or depth == distance:
        return None
    bins, lines = (np.arange(count) - (count - 1) / 2 for count in (detectors, rows))
    return Orbit(
        np.arctan2(sideways[:, 0], sideways[:, 1]), -distance, depth - distance, aside, height,
        u=across + width * bins, v=level + step * lines,
    )  # fmt: skip


def as_vectors(vectors: Any, length: int) -> np.ndarray:
    """The vectors as an array; raises `InputError` unless they are `(views, length)` finite numbers."""
    try:
        found = np.array(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != length or not len(found) or not np.isfinite(found).all():
        raise InputError(f"vectors of shape {found.shape}; expected (views, {length}) finite numbers")
    return found


def read_vectors(
    description: Mapping[str, Any], data: tuple[int, ...], axes: tuple[str, ...], length: int
) -> tuple[int, float, np.ndarray]:
    """Read the description of a CT scan from a file: image size, size of a pixel in mm, and the vectors in mm.

    Args:
        description: see `LinearOperator.describe`.
        data: shape of the measured data.
        axes: names of the axes of the data.
        length: numbers of each view.

    Raises:
        InputError: an entry is missing or out of range, or does not fit the data.
    """
    [pixel], [size] = numbers(description, "pixel_size", 1), numbers(description, "image_size", 1)
    vectors = array(description, "vectors")
    if len(data) != len(axes) or data[1] != len(vectors):
        raise InputError(
            f"projections of shape {data} with vectors of shape {vectors.shape}; expected ({', '.join(axes)}) and "
            f"{length} numbers for each angle"
        )
    if pixel <= 0 or size < 1:
        raise InputError(f"pixel size is {pixel:g} mm, image_size {size:g}; expected them positive")
    return int(size), pixel, as_vectors(vectors, length)


def plane_geometry(vectors: Any, detectors: int, kind: str, pixel: float) -> Description:
    """The description, in pixels, of a parallel or fan beam from ASTRA's vectors `(views, 6)`, see `plane_vectors`.

    Angle and width of the bins are those that a detector perpendicular to the rays would have.

    Raises:
        InputError: they are not such vectors; or rays run along the detector.
    """
    found = as_vectors(vectors, 6) / pixel
    step = found[:, 4:]
    ray = found[:, :2] if kind == "parallel_beam" else found[:, 2:4] - found[:, :2]
    normal = np.stack([-ray[:, 1], ray[:, 0]], axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), np.finfo(float).tiny)
    width = (normal * step).sum(1)
    if not np.abs(width).min() > SLANTED * np.linalg.norm(step, axis=1).max():
        raise InputError(f"rays along the detector in view {int(np.abs(width).argmin())}; expected rays that cross it")
    x, y = (normal * np.sign(width)[:, None]).T
    return {
        "kind": kind, "vectors": found, "detectors": detectors, "angles": np.arctan2(x, -y),
        "detector_spacing": float(np.abs(width).mean()),
    }  # fmt: skip


def in_slices(vectors: np.ndarray, rows: int, slices: int, thickness: float) -> np.ndarray:
    """Vectors `(views, 6)` that all slices share, from those of a parallel beam in space, `(views, 12)`.

    In space y runs along the rows of the image, in a plane against them.

    Args:
        vectors: direction of the rays, middle of the detector, steps from bin to bin and from row to row.
        rows: of the detector.
        slices: of the volume.
        thickness: distance between slices.

    Raises:
        InputError: a row of the detector does not see exactly one slice.
    """
    ray, middle, step, up = vectors.reshape(-1, 4, 3).swapaxes(0, 1)
    tilt = max(np.abs(ray[:, 2]).max() / np.linalg.norm(ray, axis=1).min(), np.abs(step[:, 2]).max() / thickness)
    off = max(np.abs(up - [0, 0, thickness]).max(), np.abs(middle[:, 2]).max()) / thickness
    if tilt > SLANTED or off > SLANTED or rows != slices:
        raise InputError(
            f"a parallel beam with {rows} rows and {slices} slices of {thickness:g}, inclined by {tilt:.3g}, off by "
            f"{off:.3g} rows; expected that each row of the detector sees one slice"
        )
    return np.concatenate([part[:, :2] * [1, -1] for part in (ray, middle, step)], axis=1)
