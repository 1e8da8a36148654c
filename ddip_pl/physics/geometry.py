"""Geometries of CT scans as plain numbers, converted from and to ODL's objects.

A description is a dictionary. Its lengths share one unit. A standard geometry has only these entries:

    kind                                parallel_beam, fan_beam or cone_beam
    angles                              (views,), radians
    detectors, rows                     number of bins in a row and, for cone beams, number of rows
    detector_spacing                    width of a bin
    source_distance, detector_distance  from the axis of rotation; not for parallel beams

Other geometries have more entries: `row_spacing`, `detector_offset` and `row_offset` (the position of the detector's
middle), ODL's arguments of the same names (`OPTIONS`), and `source_shift` and `detector_shift` (the values of ODL's
shift functions at the angles). Importing ODL takes two seconds, so only the functions that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.physics.description import array, numbers
from ddip_pl.physics.operator import Description, Shape, volume_shape
from ddip_pl.settings import Range, check

ONE_TURN = 2.02 * math.pi

# Settings of the operators.
Angles = Annotated[int, Range(1, 10_000)] | Sequence[Annotated[float, Range(-1000, 1000)]]  # number, or in radians
AngularRange = Annotated[float, Range(0, 4 * math.pi, above=True)]
Bins = Annotated[int, Range(1, 16_384)]
Distance = Annotated[float, Range(0, 1000, above=True)]  # in image widths
Spacing = Annotated[float, Range(0.01, 100)]  # in pixels
PixelSize = Annotated[float, Range(1e-9, 1e6)]  # in any unit

# Arguments of ODL's geometries, with their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "parallel_beam": {"det_pos_init": (0, 1), "det_axis_init": (1, 0), "translation": (0, 0)},
    "fan_beam": {"src_to_det_init": (0, 1), "det_axis_init": (1, 0), "translation": (0, 0)},
    "cone_beam": {
        "src_to_det_init": (0, 1, 0), "det_axes_init": ((1, 0, 0), (0, 0, 1)), "axis": (0, 0, 1), "pitch": 0.0,
        "offset_along_axis": 0.0, "translation": (0, 0, 0),
    },
}  # fmt: skip
STANDARD = {"kind", "angles", "detectors", "rows", "detector_spacing", "source_distance", "detector_distance"}
LENGTHS = {
    "detector_spacing", "row_spacing", "detector_offset", "row_offset", "source_distance", "detector_distance",
    "source_shift", "detector_shift", "det_pos_init", "translation", "pitch", "offset_along_axis", "vectors",
}  # fmt: skip


def describe_geometry(geometry: Any) -> Description:
    """Describe an ODL geometry in plain numbers.

    Args:
        geometry: a `Parallel2dGeometry`, `FanBeamGeometry` or `ConeBeamGeometry` of `odl.applications.tomo`.

    Raises:
        InputError: the geometry is of another type, or its detector is curved or has bins of different widths.
    """
    from odl.applications.tomo import ConeBeamGeometry, FanBeamGeometry, Parallel2dGeometry
    from odl.applications.tomo.geometry.detector import Flat1dDetector, Flat2dDetector

    kinds = {Parallel2dGeometry: "parallel_beam", FanBeamGeometry: "fan_beam", ConeBeamGeometry: "cone_beam"}
    kind = kinds.get(type(geometry))
    if kind is None:
        raise InputError(
            f"geometry is a {type(geometry).__name__}; expected ODL's {', '.join(cls.__name__ for cls in kinds)}"
        )
    bins = geometry.det_partition
    if not isinstance(geometry.detector, Flat1dDetector | Flat2dDetector) or not bins.is_uniform:
        raise InputError("geometry has a curved detector or uneven bins; expected a flat one with bins of equal width")
    widths, middle = bins.cell_sides.tolist(), bins.mid_pt.tolist()
    found: Description = {
        "kind": kind, "angles": np.array(geometry.angles, float), "detectors": bins.shape[0],
        "detector_spacing": widths[0],
    }  # fmt: skip
    if kind == "cone_beam":
        found["rows"] = bins.shape[1]
        if not math.isclose(*widths):
            found["row_spacing"] = widths[1]
    for name, offset, width in zip(("detector_offset", "row_offset"), middle, widths, strict=False):
        if abs(offset) > 1e-9 * width:
            found[name] = offset
    if kind != "parallel_beam":
        found |= {"source_distance": float(geometry.src_radius), "detector_distance": float(geometry.det_radius)}
        for name, shift in ("source_shift", geometry.src_shift_func), ("detector_shift", geometry.det_shift_func):
            values = np.broadcast_to(np.asarray(shift(geometry.angles), float), (len(geometry.angles), geometry.ndim))
            if values.any():
                found[name] = values.copy()
    for name, default in OPTIONS[kind].items():
        value = np.array(getattr(geometry, name), float)
        if name == "det_pos_init":  # ODL has moved it
            value -= geometry.translation
        if not np.allclose(value, default):
            found[name] = value if value.ndim else float(value)
    return found


def geometry_from(description: Mapping[str, Any]) -> Any:
    """The ODL geometry of a description; the inverse of `describe_geometry`.

    ODL needs increasing angles, so full turns are added to angles that do not increase.

    Raises:
        InputError: the geometry is given by vectors; ODL has none for them.
    """
    if "vectors" in description:
        raise InputError("ODL has no geometry for view-by-view vectors; use the attribute vectors")
    from odl.applications.tomo import ConeBeamGeometry, FanBeamGeometry, Parallel2dGeometry
    from odl.core.discr.partition import nonuniform_partition, uniform_partition

    kind, angles = description["kind"], _increasing(description["angles"])
    widths = [description["detector_spacing"]]
    counts, offsets = [description["detectors"]], [description.get("detector_offset", 0.0)]
    if kind == "cone_beam":
        widths.append(description.get("row_spacing", widths[0]))
        counts.append(description["rows"])
        offsets.append(description.get("row_offset", 0.0))
    middle, half = np.array(offsets), np.array(counts) * widths / 2
    partitions = nonuniform_partition(angles), uniform_partition(middle - half, middle + half, counts)
    options = {}
    if OPTIONS[kind].keys() & description.keys():  # give all of them: ODL derives missing ones from the others
        options = {name: description.get(name, default) for name, default in OPTIONS[kind].items()}
    if kind == "parallel_beam":
        return Parallel2dGeometry(*partitions, **options)
    for name, argument in ("source_shift", "src_shift_func"), ("detector_shift", "det_shift_func"):
        if name in description:
            options[argument] = _shift_function(angles, description[name])
    cls = FanBeamGeometry if kind == "fan_beam" else ConeBeamGeometry
    return cls(*partitions, description["source_distance"], description["detector_distance"], **options)


def same_geometry(first: Any, second: Any) -> bool:
    """Whether two ODL geometries measure along the same rays, up to rounding."""
    a, b = describe_geometry(first), describe_geometry(second)
    numeric = a.keys() - {"kind"}
    return (
        a.keys() == b.keys()
        and a["kind"] == b["kind"]
        and all(np.shape(a[name]) == np.shape(b[name]) and np.allclose(a[name], b[name]) for name in numeric)
    )


def is_standard(description: Mapping[str, Any]) -> bool:
    """Whether a geometry is standard: a centred detector that turns with the source around the origin."""
    return description.keys() <= STANDARD


def scaled(description: Mapping[str, Any], factor: float) -> Description:
    """A geometry with all lengths multiplied by `factor`."""
    return {name: value * factor if name in LENGTHS else value for name, value in description.items()}


def checked_geometry(description: Mapping[str, Any], kind: str) -> Description:
    """The entries of a description that concern the geometry, checked.

    Raises:
        InputError: an entry is missing or out of range.
    """
    if description.get("kind", kind) != kind:
        raise InputError(f"geometry of kind {description['kind']}; expected {kind}")
    divergent = kind != "parallel_beam"
    lengths = ["detector_spacing"] + ["source_distance", "detector_distance"] * divergent
    found: Description = {"kind": kind}
    found |= {name: numbers(description, name, 1)[0] for name in lengths}
    for name in ["detectors"] + ["rows"] * (kind == "cone_beam"):
        found[name] = as_bins(name, description.get(name, "missing"))
    angles = array(description, "angles", "biufc")
    if angles.ndim != 1 or angles.size == 0 or np.iscomplexobj(angles) or not np.isfinite(angles).all():
        raise InputError(f"angles of shape {angles.shape}; expected a list of finite angles")
    found["angles"] = angles.astype(np.float64)
    views, dimensions = len(angles), 3 if kind == "cone_beam" else 2
    for name in ["detector_offset"] + ["row_offset", "row_spacing"] * (kind == "cone_beam"):
        if name in description:
            [found[name]] = numbers(description, name, 1)
    options = dict(OPTIONS[kind])
    if divergent:
        options |= dict.fromkeys(("source_shift", "detector_shift"), np.zeros((views, dimensions)))
    for name, default in options.items():
        if name in description:
            flat = numbers({name: np.ravel(description[name])}, name, np.size(default))
            found[name] = np.reshape(flat, np.shape(default)) if np.ndim(default) else flat[0]
    return found


def read_geometry(
    description: Mapping[str, Any], kind: str, data: tuple[int, ...], axes: tuple[str, ...]
) -> tuple[int, float, Description]:
    """Read the description of a CT scan from a file: image size, size of a pixel in mm, and the geometry in mm.

    Args:
        description: see `LinearOperator.describe`.
        kind: of the geometry.
        data: shape of the measured data.
        axes: names of the axes of the data.

    Raises:
        InputError: an entry is missing or out of range, or does not fit the data.
    """
    if len(data) != len(axes):
        raise InputError(f"sinogram of shape {data}; expected {len(axes)} axes ({', '.join(axes)})")
    bins = {name: count for name, count in zip(axes, data, strict=True) if name in ("rows", "detectors")}
    [pixel], [size] = numbers(description, "pixel_size", 1), numbers(description, "image_size", 1)
    geometry = checked_geometry(dict(description) | bins, kind)
    angles, views = geometry["angles"], axes.index("angles")
    if data[views] != len(angles):
        like = [axis for axis in range(len(data))[::-1] if axis != views and data[axis] == len(angles)]
        hint = f"axis {like[0]} looks like the angles; move it to axis {views}" if like else "no axis has that length"
        raise InputError(f"sinogram of shape {data} with {len(angles)} angles; expected ({', '.join(axes)}); {hint}")
    if np.ptp(angles) > ONE_TURN and "pitch" not in geometry:
        raise InputError(
            f"angles from {angles.min():g} to {angles.max():g} span more than a full turn in radians and look like "
            "degrees; convert them"
        )
    if geometry["detector_spacing"] <= 0:
        raise InputError(f"detector spacing is {geometry['detector_spacing']:g} mm; expected it positive")
    if size < 1:
        raise InputError(f"image_size is {size:g}; expected at least 1 pixel")
    if pixel <= 0:
        raise InputError(f"pixel size is {pixel:g} mm; expected a positive length")
    width = size * pixel
    if kind != "parallel_beam":
        source, detector = geometry["source_distance"], geometry["detector_distance"]
        if source <= width / 2**0.5 or detector <= 0:
            raise InputError(
                f"source_distance {source:g} mm, detector_distance {detector:g} mm; expected them positive, and the "
                f"source outside the image, more than {width / 2**0.5:g} mm from the axis"
            )
    return int(size), pixel, geometry


def plane_vectors(description: Mapping[str, Any]) -> np.ndarray:
    """ASTRA's vectors of a 2D geometry, (views, 6): ray or source, middle of the detector, step from bin to bin.

    ASTRA's x runs along the columns and its y against the rows. (ODL's own conversion is the same for fan beams, but
    drops the position of the detector for parallel beams.)
    """
    if "vectors" in description:
        given: np.ndarray = description["vectors"]
        return given
    geometry, rotation = geometry_from(description), np.array([[0.0, 1.0], [-1.0, 0.0]])
    angles, middle = geometry.angles, geometry.det_params.mid_pt.item()
    parallel = description["kind"] == "parallel_beam"
    first = -geometry.det_to_src(angles, middle) if parallel else geometry.src_position(angles)
    step = geometry.det_axis(angles) * description["detector_spacing"]
    parts = first, geometry.det_point_position(angles, middle), step
    return np.concatenate([np.atleast_2d(part) @ rotation.T for part in parts], axis=1)


def cone_vectors(description: Mapping[str, Any]) -> np.ndarray:
    """ASTRA's `cone_vec` of a cone beam, (views, 12): source, middle of the detector, steps between bins and rows.

    x runs along the columns, y along the rows and z along the slices of the volume, with 0 in its middle.
    """
    width = description["detector_spacing"]
    if is_standard(description):
        sines, cosines, zeros = np.sin(description["angles"]), np.cos(description["angles"]), 0 * description["angles"]
        forward, sideways = np.stack([cosines, -sines, zeros], axis=1), np.stack([sines, cosines, zeros], axis=1)
        source, middle = -description["source_distance"] * forward, description["detector_distance"] * forward
        return np.concatenate([source, middle, width * sideways, np.tile([0, 0, width], (len(zeros), 1))], axis=1)
    geometry = geometry_from(description)
    angles, middle = geometry.angles, geometry.det_params.mid_pt
    along, across = np.moveaxis(geometry.det_axes(angles), -2, 0)
    parts = (
        geometry.src_position(angles), geometry.det_point_position(angles, middle), along * width,
        across * description.get("row_spacing", width),
    )  # fmt: skip
    return np.concatenate([np.atleast_2d(part)[:, [1, 0, 2]] for part in parts], axis=1)  # ODL's x is the row


def _increasing(angles: np.ndarray) -> np.ndarray:
    found = np.array(angles, float)
    for i in range(1, len(found)):
        if found[i] <= found[i - 1]:
            found[i] += 2 * np.pi * (1 + (found[i - 1] - found[i]) // (2 * np.pi))
    return found


def _shift_function(angles: np.ndarray, shifts: np.ndarray) -> Any:
    """The shift at a given angle, as ODL calls it."""
    return lambda angle: shifts[np.abs(np.subtract.outer(np.atleast_1d(angle), angles)).argmin(-1)]


# --- settings ---------------------------------------------------------------------------------------------


def square(shape: Shape, operator: str) -> int:
    """The size of square slices.

    Raises:
        InputError: the slices are not square, or the shape is not that of a volume.
    """
    _, height, width = volume_shape(shape)
    if height != width:
        raise InputError(f"slices of {height} x {width} pixels; {operator} needs square ones, pad them")
    return height


def only_one_of(**settings: Any) -> None:
    """Raise `InputError` unless exactly one of the settings is given."""
    given = [name for name, value in settings.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"{' and '.join(given) or 'nothing'} given; expected exactly one of {', '.join(settings)}")


def as_description(geometry: Any, kind: str, pixel: float) -> Description:
    """A geometry in pixels.

    Args:
        geometry: ODL's geometry, or its description.
        kind: expected kind of geometry.
        pixel: size of a pixel in the unit of the geometry's lengths.

    Raises:
        InputError: the geometry is of another kind, or an entry is missing or out of range.
    """
    described = checked_geometry(geometry if isinstance(geometry, Mapping) else describe_geometry(geometry), kind)
    return {name: value / pixel if name in LENGTHS else value for name, value in described.items()}


def as_bins(name: str, value: Any) -> int:
    """A number of detector bins or rows that was computed or read; raises `InputError` if it is out of range."""
    check(name, value, Bins)
    return int(value)


def as_angles(angles: Angles, angular_range: float) -> np.ndarray:
    """`angles` equidistant angles, or the given ones, in radians; raises `InputError` if none are given."""
    if isinstance(angles, (int, np.integer)):
        return np.arange(angles) * (float(angular_range) / angles)
    explicit = np.array(angles, dtype=np.float64)
    if explicit.size == 0:
        raise InputError("angles is []; give the number of angles or a list of angles in radians")
    return explicit
