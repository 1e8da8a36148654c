"""Computed tomography with a cone beam. Its rays cross several slices, so slices are measured together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.cone_rays import CircularRays, ConeRays, FreeRays
from ddip_pl.physics.description import numbers, square_pixel
from ddip_pl.physics.geometry import (
    STANDARD,
    Angles,
    Bins,
    Distance,
    PixelSize,
    Spacing,
    as_angles,
    as_bins,
    as_description,
    cone_vectors,
    geometry_from,
    is_standard,
    only_one_of,
    read_geometry,
    scaled,
    square,
)
from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import Description, LinearOperator, Shape, Slices, spectral_norm
from ddip_pl.physics.vectors import as_vectors, circular_orbit, read_vectors
from ddip_pl.settings import PositiveInt, checked

CACHE_VERSION = 2  # raise when the norm of a geometry changes


@checked
class ConeBeamCT(LinearOperator):
    """Cone-beam CT with a flat detector, on a circular orbit or along any path.

    Volumes are `(slices, 1, size, size)`, projections `(1, views, rows, detectors)`. In the plane of the orbit,
    orientation and angles are as in `FanBeamCT`; detector rows run in the direction of the slices.

    The geometry is given by `angles` and the distances, by an ODL `geometry`, or by `vectors` for each view. Circular
    orbits with an upright detector (`CircularRays`) are ten times as fast as other paths (`FreeRays`).

    Args:
        shape: of the volume: `(slices, size, size)`.
        angles: number of equidistant angles `i * 2 pi / angles`, or the angles in radians.
        thickness: distance between slices, in pixels.
        source_distance: from the source to the centre of the volume, in image widths.
        detector_distance: from the centre of the volume to the detector, in image widths.
        rows: number of detector rows; by default they cover the volume.
        detectors: number of bins in a row; by default they cover the diagonal of a slice.
        spacing: width and height of a bin, in pixels; by default those of a magnified pixel at the centre.
        iterations: conjugate-gradient steps of the pseudo-inverse; more of them amplify noise.
        cache_dir: folder that keeps the spectral norm between runs, by default `ddip-pl` in the user's cache.
        geometry: ODL's `ConeBeamGeometry`, or its description by `describe_geometry`. ODL's `(x, y, z)` are the row,
            the column and the slice.
        vectors: `(views, 12)` like ASTRA's `cone_vec`: for each view the positions `(x, y, z)` of the source and of the
            middle of the detector, and the steps from bin to bin and from row to row. x runs along the columns, y along
            the rows and z along the slices, with 0 in the middle of the volume. Needs `rows` and `detectors`.
        pixel: size of a pixel in the unit of `geometry` or `vectors`.

    Attributes:
        angles: in radians; None if the geometry was given by vectors.
        spacing: width of a bin, in pixels; None if the geometry was given by vectors.

    Raises:
        InputError: a setting is out of range, slices are not square, or the source is inside the volume.
    """

    kind = "cone_beam"
    axes = ("volumes", "angles", "rows", "detectors")

    def __init__(
        self,
        shape: Shape,
        angles: Angles | None = None,
        thickness: Spacing = 1.0,
        source_distance: Distance = 1.2,
        detector_distance: Distance = 0.9,
        rows: Bins | None = None,
        detectors: Bins | None = None,
        spacing: Spacing | None = None,
        iterations: PositiveInt = 20,
        cache_dir: str | Path | None = None,
        geometry: Any = None,
        vectors: Any = None,
        pixel: PixelSize = 1.0,
    ) -> None:
        super().__init__(shape)
        size = square(shape, "cone-beam CT")
        only_one_of(angles=angles, geometry=geometry, vectors=vectors)
        self.coupled, self.thickness = self.shape[0], float(thickness)
        self.norm, self.pixel, self.iterations = 1.0, float(pixel), iterations
        self.cache_dir = Path(cache_dir) if cache_dir is not None else user_cache()
        if angles is not None:
            source, detector = float(source_distance) * size, float(detector_distance) * size
            focus = source + detector
            radius = size / math.sqrt(2)
            if source <= radius:
                raise InputError(f"source_distance is {source_distance}; expected more than 0.71, outside the volume")
            spacing = focus / source if spacing is None else float(spacing)
            if detectors is None:  # the outermost rays are tangents to the circle around the slices
                detectors = math.ceil(2 * focus * radius / math.sqrt(source**2 - radius**2) / spacing)
            if rows is None:  # and meet the edge of the volume where it is nearest to the source
                rows = math.ceil(self.coupled * self.thickness * focus / (source - radius) / spacing)
            self._geometry: Description = {
                "kind": self.kind, "angles": as_angles(angles, 2 * math.pi), "rows": as_bins("rows", rows),
                "detectors": as_bins("detectors", detectors), "detector_spacing": spacing, "source_distance": source,
                "detector_distance": detector,
            }  # fmt: skip
        elif geometry is not None:
            self._geometry = as_description(geometry, self.kind, pixel)
        else:
            self._geometry = {
                "vectors": as_vectors(vectors, 12) / pixel, "rows": as_bins("rows", rows),
                "detectors": as_bins("detectors", detectors),
            }  # fmt: skip
        self.rows, self.detectors = self._geometry["rows"], self._geometry["detectors"]
        self.angles, self.spacing = self._geometry.get("angles"), self._geometry.get("detector_spacing")
        self.rays = self._rays()

    def _rays(self) -> ConeRays:
        vectors = self._geometry["vectors"] if "vectors" in self._geometry else cone_vectors(self._geometry)
        box = np.array([self.shape[2], self.shape[1], self.shape[0] * self.thickness]) / 2
        inside = np.flatnonzero((np.abs(vectors[:, :3]) < box).all(1))
        if inside.size:
            raise InputError(f"the source is inside the volume in view {inside[0]}; expected it outside")
        orbit = circular_orbit(vectors, self.rows, self.detectors)
        if orbit is not None and orbit.source > self.shape[1] / math.sqrt(2):
            return CircularRays(self.shape, orbit, self.thickness)
        return FreeRays(self.shape, vectors, self.rows, self.detectors, self.thickness)

    @cached_property
    def scale(self) -> float:  # type: ignore[override]
        """Spectral norm of the physical operator, to about 0.1 %.

        Raises:
            InputError: no ray meets the volume.
        """
        like = self.like

        def make() -> dict[str, np.ndarray]:
            normal = lambda x: self.rays.back_project(self.rays.project(x.to(like)))  # noqa: E731
            return {"norm": np.array(spectral_norm(normal, self.domain, torch.float32, tolerance=1e-6))}

        geometry = self._geometry
        key: list[Any] = [CACHE_VERSION, self.domain]
        if is_standard(geometry):
            source = geometry["source_distance"]
            key += [
                geometry["angles"].tolist(), self.rows, self.detectors, geometry["detector_spacing"], self.thickness,
                source, source + geometry["detector_distance"],
            ]  # fmt: skip
        else:
            key += [self.thickness, {name: np.asarray(value).tolist() for name, value in geometry.items()}]
        norm = float(cached(self.cache_dir, "cone-beam", key, make)["norm"])
        if norm == 0:
            raise InputError("no ray meets the volume; expected detectors that cover it")
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Projections `(1, views, rows, detectors)` of a volume `x (slices, 1, size, size)`.

        Raises:
            InputError: `x` has another shape.
        """
        self.expect(x, self.domain)
        y: Tensor = self.rays(x.to(self.like.dtype))
        return y / self.scale

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection `(slices, 1, size, size)` of `y (1, views, rows, detectors)`.

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        return self.rays.adjoint(y.to(self.like.dtype)) / self.scale

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`."""
        return sinogram_noise(y)

    def readouts(self) -> Tensor:
        """One label for each view."""
        return torch.arange(len(self._views), device=self.like.device)[:, None, None].expand(self.range[1:])

    @property
    def range(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of `y`."""
        return 1, len(self._views), self.rows, self.detectors

    @property
    def _views(self) -> np.ndarray:
        views: np.ndarray = self._geometry["vectors" if "vectors" in self._geometry else "angles"]
        return views

    @property
    def geometry(self) -> Any:
        """The scan geometry, an object of `odl.applications.tomo`.

        Raises:
            InputError: the geometry was given by vectors; ODL has none for them.
        """
        return geometry_from(scaled(self._geometry, self.pixel))

    @property
    def vectors(self) -> np.ndarray:
        """The scan geometry view by view, `(views, 12)` in the unit of `pixel`; see the argument `vectors`."""
        found = self._geometry["vectors"] if "vectors" in self._geometry else cone_vectors(self._geometry)
        return np.array(found * self.pixel)

    def select(self, slices: Slices) -> LinearOperator:
        """The operator for some slices, with the others set to 0; its norm is below 1."""
        _ = self.scale  # compute it while all slices are there
        part: Any = super().select(slices)
        part.rays.keep(slices)
        part.__dict__.pop("norm", None)
        return part

    def describe(self, pixel: tuple[float, float]) -> Description:
        """The geometry in mm, and the number and thickness of the slices; see `ddip_pl.physics.geometry`."""
        side = square_pixel(pixel, "cone beams")
        lengths = {n: v for n, v in scaled(self._geometry, side).items() if n not in ("kind", "rows", "detectors")}
        return lengths | {
            "slices": self.shape[0], "slice_thickness": self.thickness * side, "image_size": self.shape[1],
            "pixel_size": side,
        }  # fmt: skip

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> ConeBeamCT:
        [slices], [thickness] = numbers(description, "slices", 1), numbers(description, "slice_thickness", 1)
        if slices < 1 or thickness <= 0:
            raise InputError(f"{slices:g} slices of {thickness:g} mm; expected at least 1, and a positive length")
        if "vectors" not in description:
            size, pixel, geometry = read_geometry(description, cls.kind, data, cls.axes)
            return cls((int(slices), size, size), thickness=thickness / pixel, geometry=geometry, pixel=pixel)
        side, pixel, vectors = read_vectors(description, data, cls.axes, 12)
        shape = int(slices), side, side
        return cls(shape, thickness=thickness / pixel, vectors=vectors, rows=data[2], detectors=data[3], pixel=pixel)

    def unit(self, pixel: tuple[float, float]) -> float:
        return self.scale * square_pixel(pixel, "cone beams")

    def extra_repr(self) -> str:
        geometry = self._geometry
        names = {"detector_spacing": "spacing", "source_distance": "source", "detector_distance": "detector"}
        lengths = "".join(f", {names[n]}={geometry[n]:g}" for n in names if n in geometry)
        unusual = "".join(f", {n}={v}" for n, v in geometry.items() if n not in STANDARD | {"vectors"})
        return (
            f"shape={self.shape}, angles={len(self._views)}, rows={self.rows}, detectors={self.detectors}, "
            f"thickness={self.thickness:g}{lengths}{unusual}"
        )
