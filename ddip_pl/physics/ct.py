"""Computed tomography with a parallel beam or a fan beam."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.geometry import (
    Angles,
    AngularRange,
    Bins,
    Distance,
    PixelSize,
    Spacing,
    as_angles,
    as_bins,
    as_description,
    only_one_of,
    square,
)
from ddip_pl.physics.operator import Shape
from ddip_pl.physics.projector import Projector
from ddip_pl.physics.vectors import plane_geometry
from ddip_pl.settings import PositiveInt, checked


@checked
class ParallelBeamCT(Projector):
    """Parallel-beam CT, see `Projector`.

    The physical operator integrates along the lines `p_0 cos(theta) + p_1 sin(theta) = s`, with Joseph's linear
    interpolation (IEEE Trans. Med. Imaging 1, 1982). Geometry and orientation are the same as in ODL's `RayTransform`
    with `Parallel2dGeometry`, so both take the same arrays: `p_0` grows from row to row of the image, `p_1` from column
    to column, `s` from bin to bin of a detector centred at 0.

    The geometry is given by `angles` and the settings after it, by an ODL `geometry`, or by `vectors` for each view.

    Args:
        shape: of the volume: `(slices, size, size)`.
        angles: number of equidistant angles `i * angular_range / angles`, or the angles in radians.
        angular_range: range of equidistant angles in radians; below pi for limited-angle CT.
        detectors: number of detector bins; by default they cover the diagonal of the image.
        spacing: width of a detector bin, in pixels.
        filter: window of the filtered back-projection: `ram-lak` (none) or `hann` (smoother).
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.
        geometry: ODL's `Parallel2dGeometry`, or its description by `describe_geometry`.
        vectors: `(views, 6)` like ASTRA's `parallel_vec`: for each view the direction of its rays, the position of the
            middle of the detector, and the step from bin to bin, as `(x, y)`. x runs along the columns and y against
            the rows, with 0 in the middle of the image. Needs `detectors`.
        pixel: size of a pixel in the unit of the lengths of `geometry` or `vectors`.

    Raises:
        InputError: a setting is out of range, or slices are not square.
    """

    kind = "parallel_beam"
    discretisation, beam = "linear", "parallel"
    fbp_filter: Tensor

    def __init__(
        self,
        shape: Shape,
        angles: Angles | None = None,
        angular_range: AngularRange = math.pi,
        detectors: Bins | None = None,
        spacing: Spacing = 1.0,
        filter: Literal["ram-lak", "hann"] = "ram-lak",
        cache_dir: str | Path | None = None,
        geometry: Any = None,
        vectors: Any = None,
        pixel: PixelSize = 1.0,
    ) -> None:
        size = square(shape, "parallel-beam CT")
        only_one_of(angles=angles, geometry=geometry, vectors=vectors)
        if angles is not None:
            spacing, directions = float(spacing), as_angles(angles, angular_range)
            if detectors is None:
                detectors = math.ceil(math.sqrt(2) * size / spacing)
            geometry = {
                "kind": self.kind, "angles": directions, "detectors": as_bins("detectors", detectors),
                "detector_spacing": spacing,
            }  # fmt: skip
        elif geometry is not None:
            geometry = as_description(geometry, self.kind, pixel)
        else:
            geometry = plane_geometry(vectors, as_bins("detectors", detectors), self.kind, pixel)
        super().__init__(shape, geometry, pixel, cache_dir)
        self.filter = filter

        # Back-projection sums over angles (weight: the angular step) and convolution over bins (weight: the spacing).
        # An angle's columns of A sum to 1 / spacing on average, and A was divided by `scale`, once on either side.
        weights = _angular_weights(self.angles) * self.scale**2 * self.spacing**2
        response = _ramp(self.detectors, self.spacing, window=filter == "hann")
        fbp_filter = torch.from_numpy(np.outer(weights, response)).float()
        self.register_buffer("fbp_filter", fbp_filter, persistent=False)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Filtered back-projection of sinograms `y` (Kak & Slaney, Computerized Tomographic Imaging, 3.3).

        Each angle is weighted by half the gap between its neighbours in direction (modulo pi), so non-uniform and
        repeated directions are integrated correctly; a missing wedge is not filled in.

        Raises:
            InputError: `y` is not `(slices, 1, angles, detectors)`.
        """
        self.expect(y, self.range)
        length = 2 * (self.fbp_filter.shape[-1] - 1)
        spectrum = torch.fft.rfft(y.to(self.fbp_filter.dtype), n=length) * self.fbp_filter
        return self.adjoint(torch.fft.irfft(spectrum, n=length)[..., : self.detectors])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, filter={self.filter}"


@checked
class FanBeamCT(Projector):
    """Fan-beam CT with a flat detector, see `Projector`.

    Rays are integrated exactly through unit pixels (Siddon, Med. Phys. 12, 1985). Geometry and orientation are the same
    as in ODL's `RayTransform` with `FanBeamGeometry`. Distances are in image widths, so they suit any image size.

    The geometry is given by `angles` and the settings after it, by an ODL `geometry`, or by `vectors` for each view.

    Args:
        shape: of the volume: `(slices, size, size)`.
        angles: number of equidistant angles `i * angular_range / angles`, or the angles in radians.
        angular_range: range of equidistant angles in radians.
        source_distance: from the source to the centre of the image, in image widths.
        detector_distance: from the centre of the image to the detector, in image widths.
        detectors: number of detector bins; by default they cover the diagonal of the image.
        spacing: width of a detector bin, in pixels; by default that of a magnified pixel at the centre.
        iterations: conjugate-gradient steps of the pseudo-inverse; more of them amplify noise.
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.
        geometry: ODL's `FanBeamGeometry`, or its description by `describe_geometry`.
        vectors: `(views, 6)` like ASTRA's `fanflat_vec`: for each view the position of the source, the position of the
            middle of the detector, and the step from bin to bin, as `(x, y)`. x runs along the columns and y against
            the rows, with 0 in the middle of the image. Needs `detectors`.
        pixel: size of a pixel in the unit of the lengths of `geometry` or `vectors`.

    Raises:
        InputError: a setting is out of range, or slices are not square.
    """

    kind = "fan_beam"
    discretisation, beam = "line_fanflat", "fanflat"

    def __init__(
        self,
        shape: Shape,
        angles: Angles | None = None,
        angular_range: AngularRange = 2 * math.pi,
        source_distance: Distance = 1.2,
        detector_distance: Distance = 0.9,
        detectors: Bins | None = None,
        spacing: Spacing | None = None,
        iterations: PositiveInt = 20,
        cache_dir: str | Path | None = None,
        geometry: Any = None,
        vectors: Any = None,
        pixel: PixelSize = 1.0,
    ) -> None:
        size = square(shape, "fan-beam CT")
        only_one_of(angles=angles, geometry=geometry, vectors=vectors)
        if angles is not None:
            directions = as_angles(angles, angular_range)
            source, detector = float(source_distance) * size, float(detector_distance) * size
            radius = size / math.sqrt(2)
            if source <= radius:
                raise InputError(f"source_distance is {source_distance}; expected more than 0.71, outside the image")
            magnification = (source + detector) / source
            spacing = magnification if spacing is None else float(spacing)
            if detectors is None:  # the outermost rays are tangents to the circle around the image
                widest = (source + detector) * radius / math.sqrt(source**2 - radius**2)
                detectors = math.ceil(2 * widest / spacing)
            geometry = {
                "kind": self.kind, "angles": directions, "detectors": as_bins("detectors", detectors),
                "detector_spacing": spacing, "source_distance": source, "detector_distance": detector,
            }  # fmt: skip
        elif geometry is not None:
            geometry = as_description(geometry, self.kind, pixel)
        else:
            geometry = plane_geometry(vectors, as_bins("detectors", detectors), self.kind, pixel)
        super().__init__(shape, geometry, pixel, cache_dir)
        self.iterations = iterations

    def extra_repr(self) -> str:
        names = {"source_distance": "source", "detector_distance": "detector"}
        lengths = "".join(f", {names[n]}={self._geometry[n]:g}" for n in names if n in self._geometry)
        return super().extra_repr() + lengths


# --- filtered back-projection -----------------------------------------------------------------------------


def _angular_weights(angles: np.ndarray) -> np.ndarray:
    """Quadrature weights of the integral over directions in [0, pi), in radians.

    The weight of a direction is half the gap between its neighbours, divided among the angles along it. The widest gap,
    if more than three times the median, is a missing wedge: no measurement represents it.
    """
    fraction = np.round(angles / np.pi % 1, 9) % 1
    directions, inverse, repeats = np.unique(fraction, return_inverse=True, return_counts=True)
    gaps = np.pi * np.diff(directions, append=directions[0] + 1)
    gaps[gaps.argmax()] = gaps.max() if gaps.max() <= 3 * np.median(gaps) else np.median(gaps)
    return ((gaps + np.roll(gaps, 1)) / 2 / repeats)[inverse]


def _ramp(detectors: int, spacing: float, window: bool) -> np.ndarray:
    """Real frequency response of the ramp filter (Kak & Slaney, eq. 3.61).

    Sampling it in space and zero-padding to twice the detector avoids an offset and wrap-around.
    """
    length = 2 ** math.ceil(math.log2(2 * detectors))
    n = np.fft.fftfreq(length, 1 / length).round()  # 0, 1, ..., -2, -1
    kernel = np.where(n % 2 == 1, -1 / (np.pi * spacing * np.where(n == 0, 1, n)) ** 2, 0.0)
    kernel[0] = 1 / (2 * spacing) ** 2
    response = np.fft.rfft(kernel).real
    if window:
        response *= 0.5 * (1 + np.cos(2 * np.pi * np.fft.rfftfreq(length)))
    return response
