"""Computed tomography with a cone beam: rays are oblique to the slices, which are therefore measured together."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.geometry import as_angles, as_count, as_length
from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import LinearOperator, spectral_norm
from ddip_pl.solvers.cg import conjugate_gradient

CACHE_VERSION = 1  # raise it when the norm of a geometry changes
GRID_SAMPLE_ADJOINT = torch.ops.aten.grid_sampler_2d_backward  # what autograd calls
BILINEAR_WITH_ZEROS = 0, 0, False  # mode, padding, align_corners: as of `F.grid_sample` below


class ConeBeamCT(LinearOperator):
    """Cone-beam CT with a flat detector and a circular orbit around the middle of the volume.

    Volumes are (slices, 1, image_size, image_size), projections (1, angles, rows, detectors). In the plane of the
    orbit, orientation and angles are those of `FanBeamCT`; detector rows follow the slices.

    A ray is sampled where it crosses planes that are parallel to the detector and one pixel apart, with linear
    interpolation along each axis. All rays of a plane come from it by the same magnification, so the interpolation
    comes apart: within the slices it is the same for all slices and rows, across them the same for all views and
    detectors. The first is done view by view, so that memory does not grow with their number; the second is a matrix
    product.

    Args:
        image_size: height and width of the slices, in pixels.
        angles: number of equidistant angles `i * 2 pi / angles`, or the angles in radians.
        slices: of the volume; `for_volume` gives the operator for another number.
        thickness: from one slice to the next, in pixels.
        source_distance: from the source to the centre of the volume, in image widths.
        detector_distance: from the centre of the volume to the detector, in image widths.
        rows: number of detector rows; by default they cover the volume.
        detectors: number of bins in a row; by default they cover the diagonal of the slices.
        spacing: width and height of a bin, in pixels; by default that of a pixel in the centre, as it is magnified.
        iterations: conjugate-gradient steps of the pseudo-inverse; few keep noise from being amplified.
        cache_dir: folder that keeps the spectral norm between runs, by default `ddip-pl` in the user's cache.

    Raises:
        InputError: a setting is out of its range.
    """

    slopes: Tensor
    depths: Tensor
    across: Tensor
    lengths: Tensor
    forwards: Tensor
    sidewards: Tensor

    def __init__(
        self,
        image_size: int,
        angles: int | Sequence[float],
        slices: int = 1,
        thickness: float = 1.0,
        source_distance: float = 1.2,
        detector_distance: float = 0.9,
        rows: int | None = None,
        detectors: int | None = None,
        spacing: float | None = None,
        iterations: int = 20,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.for_slices = partial(
            ConeBeamCT, image_size, angles, thickness=thickness, source_distance=source_distance,
            detector_distance=detector_distance, rows=rows, detectors=detectors, spacing=spacing,
            iterations=iterations, cache_dir=cache_dir,
        )  # fmt: skip
        image_size, slices = as_count("image_size", image_size), as_count("slices", slices)
        thickness = as_length("thickness", thickness)
        source = as_length("source_distance", source_distance) * image_size
        focus = source + as_length("detector_distance", detector_distance) * image_size  # from source to detector
        radius = image_size / math.sqrt(2)
        if source <= radius:
            raise InputError(f"source_distance is {source_distance}; expected more than 0.71, outside of the volume")
        spacing = focus / source if spacing is None else as_length("spacing", spacing)
        if detectors is None:  # the outermost rays are tangents to the circle around the slices
            detectors = math.ceil(2 * focus * radius / math.sqrt(source**2 - radius**2) / spacing)
        if rows is None:  # and meet the volume's edge where that is nearest to the source
            rows = math.ceil(slices * thickness * focus / (source - radius) / spacing)
        self.image_size, self.coupled = image_size, slices
        self.angles = as_angles(angles, 2 * math.pi)
        self.rows, self.detectors = as_count("rows", rows), as_count("detectors", detectors)
        self.thickness, self.source, self.focus, self.spacing = thickness, source, focus, spacing
        self.iterations = as_count("iterations", iterations)
        self.cache_dir = Path(cache_dir) if cache_dir is not None else user_cache()

        u, v = (_centred(count).double() * spacing for count in (self.detectors, self.rows))
        depths = source + _centred(math.ceil(2 * radius) + 1)  # of the planes, from the source
        heights = v[:, None, None] * depths / focus / thickness  # in which rays cross them, in slices
        across = (1 - (heights - _centred(slices)[:, None]).abs()).clamp(min=0)
        lengths = (focus**2 + u**2 + v[:, None] ** 2).sqrt() / focus  # of a ray, from plane to plane
        sines, cosines = (torch.from_numpy(f(self.angles)) for f in (np.sin, np.cos))
        buffers = {
            "slopes": u / focus, "depths": depths, "across": across, "lengths": lengths,
            "forwards": torch.stack([cosines, -sines], dim=1),  # columns, rows of the image
            "sidewards": torch.stack([sines, cosines], dim=1),
        }  # fmt: skip
        for name, values in buffers.items():
            self.register_buffer(name, values.float(), persistent=False)

    @cached_property
    def scale(self) -> float:  # type: ignore[override]
        """Spectral norm of the physical operator, to about 0.1 %."""
        shape = self._volume_shape

        def make() -> dict[str, np.ndarray]:
            normal = lambda x: self._back_project(self._project(x.to(self.across)))  # noqa: E731
            return {"norm": np.array(spectral_norm(normal, shape, torch.float32, tolerance=1e-6))}

        key = [
            CACHE_VERSION, shape, self.angles.tolist(), self.rows, self.detectors, self.spacing, self.thickness,
            self.source, self.focus,
        ]  # fmt: skip
        norm = float(cached(self.cache_dir, "cone-beam", key, make)["norm"])
        if norm == 0:
            raise InputError("no ray meets the volume; expected detectors that cover it")
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Projections (1, angles, rows, detectors) of a volume `x` (slices, 1, image_size, image_size).

        Raises:
            ValueError: `x` has another shape.
        """
        _check_shape(x, self._volume_shape)
        y: Tensor = _Projection.apply(x.to(self.across.dtype), self, False)
        return y / self.scale

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection (slices, 1, image_size, image_size) of `y` (1, angles, rows, detectors).

        Raises:
            ValueError: `y` has another shape.
        """
        _check_shape(y, self._projections_shape)
        x: Tensor = _Projection.apply(y.to(self.across.dtype), self, True)
        return x / self.scale

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A few conjugate-gradient steps on `A^T A x = A^T y` from 0.

        (Filtered back-projection loses the outermost slices, through which most rays do not pass all the way.)

        Raises:
            ValueError: `y` has another shape.
        """
        return conjugate_gradient(self.normal, self.adjoint(y), self.iterations, coupled=self.coupled)

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`."""
        return sinogram_noise(y)

    def for_volume(self, slices: int) -> ConeBeamCT:
        """The operator of a volume of so many slices."""
        return self.for_slices(slices=slices)

    def select(self, slices: slice | Sequence[int] | Tensor) -> ConeBeamCT:
        """The operator of some slices of the volume, the others of which are 0; of norm below 1."""
        part = copy.copy(self)
        part.scale = self.scale
        part._buffers = self._buffers | {"across": self.across[:, slices]}
        part.coupled = part.across.shape[1]
        return part

    def extra_repr(self) -> str:
        return (
            f"image_size={self.image_size}, slices={self.coupled}, angles={len(self.angles)}, rows={self.rows}, "
            f"detectors={self.detectors}, spacing={self.spacing:g}, source={self.source:g}, focus={self.focus:g}"
        )

    @property
    def _volume_shape(self) -> tuple[int, ...]:
        return self.coupled, 1, self.image_size, self.image_size

    @property
    def _projections_shape(self) -> tuple[int, ...]:
        return 1, len(self.angles), self.rows, self.detectors

    def _samples(self) -> Iterator[Tensor]:
        """Of each view, where rays cross the planes: (1, planes, detectors, 2), as `grid_sample` counts."""
        for forward, sideways in zip(self.forwards, self.sidewards, strict=True):
            rays = forward + self.slopes[:, None] * sideways
            yield (2 / self.image_size * (self.depths[:, None, None] * rays - self.source * forward))[None]

    def _project(self, x: Tensor) -> Tensor:
        images, across = x.transpose(0, 1), self.across.flatten(1)
        views = [
            across @ F.grid_sample(images, samples, align_corners=False)[0].flatten(0, 1) for samples in self._samples()
        ]
        return self.lengths * torch.stack(views)[None]

    def _back_project(self, y: Tensor) -> Tensor:
        x = y.new_zeros(self._volume_shape).transpose(0, 1)
        for view, samples in zip((self.lengths * y)[0], self._samples(), strict=True):
            planes = (self.across.flatten(1).T @ view).unflatten(0, self.across.shape[1:])[None]
            x += GRID_SAMPLE_ADJOINT(planes, x, samples, *BILINEAR_WITH_ZEROS, [True, False])[0]
        return x.transpose(0, 1)


class _Projection(torch.autograd.Function):
    """Projection, or back-projection if `back`; the gradient of the one is the other."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, operator: ConeBeamCT, back: bool) -> Tensor:
        ctx.operator, ctx.back = operator, back
        with torch.autocast(tensor.device.type, enabled=False):  # measurements stay in full precision
            return operator._back_project(tensor) if back else operator._project(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Projection.apply(grads[0], ctx.operator, not ctx.back), None, None


def _centred(count: int) -> Tensor:
    """Positions one apart, with 0 in the middle."""
    return torch.arange(count) - (count - 1) / 2


def _check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"expected a tensor of shape {shape}, got {tuple(x.shape)}")
