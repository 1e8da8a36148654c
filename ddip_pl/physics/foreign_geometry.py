"""CT operators from the scan geometries of other programs: ASTRA, TIGRE and, through ASTRA, CIL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.physics.cone_beam import ConeBeamCT
from ddip_pl.physics.ct import FanBeamCT, ParallelBeamCT
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.physics.vectors import as_vectors, in_slices

UNEVEN = 1e-6  # largest difference between sides of a pixel, relative


def from_astra(projections: Mapping[str, Any], volume: Mapping[str, Any], slices: int = 1) -> LinearOperator:
    """The operator of ASTRA's geometries.

    They may be `parallel`, `fanflat`, `parallel3d`, `cone`, or the same with `_vec`. `cone` data of ASTRA, `(rows,
    views, detectors)`, become `y[None]` of shape `(1, views, rows, detectors)` by swapping their first two axes;
    `parallel3d` data, whose rows must be the slices, need no more than a second axis.

    CIL: `from_astra(*convert_geometry_to_astra_vec_3D(image_geometry, acquisition_geometry)[::-1])`, with that function
    of `cil.plugins.astra.utilities`.

    Args:
        projections: made by `astra.create_proj_geom`.
        volume: made by `astra.create_vol_geom`.
        slices: number of slices, of a geometry in the plane.

    Raises:
        InputError: ASTRA is not installed, the geometries are of other kinds, or pixels or slices are not square.
    """
    try:
        from astra.functions import geom_2vec
    except ImportError as error:
        raise InputError("ASTRA is not installed; pip install astra-toolbox") from error
    kind = str(projections.get("type"))
    if kind.removesuffix("_vec") not in ("parallel", "fanflat", "parallel3d", "cone"):
        raise InputError(f"projection geometry of type {kind!r}; expected parallel, fanflat, parallel3d or cone")
    given = projections if kind.endswith("_vec") else geom_2vec(projections)
    parallel, flat = kind.startswith("parallel"), "DetectorRowCount" not in given
    detectors = given["DetectorCount" if flat else "DetectorColCount"]
    size, pixel, middle = _grid(volume, "XY" if flat else "XYZ")
    vectors = as_vectors(given["Vectors"], 6 if flat else 12)
    # A parallel beam has directions where the others have sources, which move with the volume's middle.
    vectors = vectors - [*(0 * middle if parallel else middle), *middle, *[0.0] * (vectors.shape[1] - 2 * len(middle))]
    if flat:
        cls: Any = ParallelBeamCT if parallel else FanBeamCT
        made: LinearOperator = cls((slices, size, size), vectors=vectors, detectors=detectors, pixel=pixel)
        return made
    count = volume["GridSliceCount"]
    thickness = (volume["option"]["WindowMaxZ"] - volume["option"]["WindowMinZ"]) / count
    return _operator(vectors, (count, size), (given["DetectorRowCount"], detectors), pixel, thickness, parallel)


def from_tigre(geometry: Any, angles: Any) -> LinearOperator:
    """The operator of TIGRE's geometry; images are TIGRE's volumes `(z, y, x)` with a second axis.

    TIGRE's projections `(views, v, u)` become `y[None]` of a cone beam; for a parallel beam, whose `v` must be the
    slices, move that axis to the front and add a second one.

    Args:
        geometry: `tigre.geometry`, or any object with the same attributes in Python's order, `(z, y, x)` and `(v, u)`.
        angles: of the views in radians, `(views,)`, or Euler angles ZYZ, `(views, 3)`.

    Raises:
        InputError: an attribute is missing, or the slices are not square.
    """
    from scipy.spatial.transform import Rotation

    turns = np.array(angles, np.float64)
    turns = np.column_stack([turns, np.zeros((len(turns), 2))]) if turns.ndim == 1 else turns
    if turns.ndim != 2 or turns.shape[1] != 3 or not len(turns) or not np.isfinite(turns).all():
        raise InputError(f"angles of shape {np.shape(angles)}; expected one or three finite numbers for each view")
    views, none = len(turns), np.zeros(len(turns))
    source, distance = _each(geometry, "DSO", 1, views)[:, 0], _each(geometry, "DSD", 1, views)[:, 0]
    voxels, voxel = _each(geometry, "nVoxel", 3)[0], _each(geometry, "dVoxel", 3)[0]
    bins, bin_size = _each(geometry, "nDetector", 2)[0], _each(geometry, "dDetector", 2)[0]
    if voxels[1] != voxels[2] or not np.isclose(voxel[1], voxel[2]):
        raise InputError(
            f"slices of {voxels[1]:g} x {voxels[2]:g} voxels of {voxel[1]:g} x {voxel[2]:g}; expected square ones"
        )
    parallel = str(getattr(geometry, "mode", "cone")) == "parallel"
    across, along = _each(geometry, "offDetector", 2, views, 0.0).T
    orbit = Rotation.from_euler("ZYZ", turns)
    tilt = Rotation.from_euler("ZYX", _each(geometry, "rotDetector", 3, views, 0.0)[:, ::-1])
    shift = _each(geometry, "COR", 1, views, 0.0) * np.stack([-np.sin(turns[:, 0]), np.cos(turns[:, 0]), none], axis=1)
    shift = shift - _each(geometry, "offOrigin", 3, views, 0.0)[:, ::-1]
    first = orbit.apply(np.stack([source, none, none], axis=1))
    middle = orbit.apply(np.stack([source - distance, along, across], axis=1)) + shift
    steps = [orbit.apply(tilt.apply(step)) for step in ([0, bin_size[1], 0], [0, 0, bin_size[0]])]
    vectors = np.concatenate([-first if parallel else first + shift, middle, *steps], axis=1)
    return _operator(vectors, (voxels[0], voxels[1]), (bins[0], bins[1]), voxel[1], voxel[0], parallel)


def _each(geometry: Any, name: str, length: int, views: int = 1, default: float | None = None) -> np.ndarray:
    """An attribute of TIGRE's geometry for each view, `(views, length)`; more numbers than that are left out."""
    value = getattr(geometry, name, default)
    try:
        found = np.asarray(value, np.float64)
        if found.ndim < 2:
            found = found.reshape(-1, 1) if length == 1 else np.atleast_1d(found)
        found = np.broadcast_to(found[..., :length], (views, length))
        if np.isfinite(found).all():
            return found
    except (TypeError, ValueError):
        pass
    raise InputError(f"{name} of TIGRE's geometry is {value!r}; expected {length} finite numbers, or as many per view")


def _grid(volume: Mapping[str, Any], axes: str) -> tuple[int, float, np.ndarray]:
    """Size of the slices of ASTRA's volume, size of a pixel, and where its middle is."""
    rows, columns, window = volume["GridRowCount"], volume["GridColCount"], volume["option"]
    sides = np.array([[window[f"Window{end}{axis}"] for end in ("Min", "Max")] for axis in axes], np.float64)
    width, height = np.ptp(sides[:2], axis=1) / (columns, rows)
    if rows != columns or abs(width - height) > UNEVEN * width:
        raise InputError(f"slices of {rows} x {columns} pixels of {height:g} x {width:g}; expected square ones")
    return int(rows), float(width), sides.mean(1)


def _operator(
    vectors: np.ndarray, grid: tuple[int, int], bins: tuple[int, int], pixel: float, thickness: float, parallel: bool
) -> LinearOperator:
    """The operator of vectors `(views, 12)` in the unit of `pixel`.

    Args:
        vectors: see `ConeBeamCT`; for a parallel beam the first three are the direction of the rays.
        grid: number of slices and their size.
        bins: rows and bins of the detector.
        pixel: size of a pixel.
        thickness: distance between slices.
        parallel: whether the beam is.
    """
    (slices, size), (rows, detectors) = map(int, grid), map(int, bins)
    shape, pixel = (slices, size, size), float(pixel)
    if not parallel:
        return ConeBeamCT(
            shape, vectors=vectors, rows=rows, detectors=detectors, thickness=float(thickness) / pixel, pixel=pixel
        )
    return ParallelBeamCT(
        shape, vectors=in_slices(vectors, rows, slices, float(thickness)), detectors=detectors, pixel=pixel
    )
