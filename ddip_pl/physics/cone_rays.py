"""Line integrals along the rays of a cone beam, view by view: memory does not grow with the number of views."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import vjp
from torch.nn.functional import grid_sample

from ddip_pl.physics.operator import Shape, Slices
from ddip_pl.physics.vectors import Orbit

SAMPLES_AT_ONCE = 2**21  # along free rays; 24 MiB of positions


class ConeRays(nn.Module, ABC):
    """A linear map from volumes `(slices, 1, size, size)` to projections `(1, views, rows, detectors)`, in pixels."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Line integrals through the volume `x`."""

    @abstractmethod
    def back_project(self, y: Tensor) -> Tensor:
        """The exact adjoint of `project`."""

    @abstractmethod
    def keep(self, slices: Slices) -> None:
        """Restrict the volume to some slices; the others are 0."""

    def forward(self, x: Tensor) -> Tensor:
        """`project(x)`, differentiable any number of times."""
        return _Apply.apply(x, self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """`back_project(y)`, differentiable any number of times."""
        return _Apply.apply(y, self, True)


class _Apply(torch.autograd.Function):
    """Projection, or back-projection if `back`; each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rays: ConeRays, back: bool) -> Tensor:
        ctx.rays, ctx.back = rays, back
        with torch.autocast(tensor.device.type, enabled=False):  # measurements stay in full precision
            return rays.back_project(tensor) if back else rays.project(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(grads[0], ctx.rays, not ctx.back), None, None


class CircularRays(ConeRays):
    """Rays of a circular orbit around the middle of the volume, with a flat detector parallel to the axis.

    A ray is sampled where it crosses planes that are parallel to the detector and one pixel apart, with linear
    interpolation along each axis. All rays cross a plane at the same magnification, so the interpolation is separable:
    within slices it is the same for all slices and rows, across slices the same for all views and detectors. The first
    is done view by view; the second is a matrix product.

    Args:
        shape: of the volume.
        orbit: of the source and the detector.
        thickness: distance between slices.
    """

    slopes: Tensor
    depths: Tensor
    across: Tensor
    lengths: Tensor
    forwards: Tensor
    sidewards: Tensor

    def __init__(self, shape: Shape, orbit: Orbit, thickness: float) -> None:
        super().__init__()
        slices, self.size = shape[0], shape[1]
        self.source, self.aside = orbit.source, orbit.aside
        focus, u, v = orbit.focus, torch.from_numpy(orbit.u - orbit.aside), torch.from_numpy(orbit.v - orbit.height)
        depths = orbit.source + _centred(math.ceil(2 * self.size / math.sqrt(2)) + 1)  # of the planes, from the source
        heights = (orbit.height + v[:, None, None] * depths / focus) / thickness  # at which rays cross them, in slices
        across = (1 - (heights - _centred(slices)[:, None]).abs()).clamp(min=0)
        lengths = (focus**2 + u**2 + v[:, None] ** 2).sqrt() / focus  # of a ray between planes
        sines, cosines = (torch.from_numpy(f(orbit.angles)) for f in (np.sin, np.cos))
        buffers = {
            "slopes": u / focus, "depths": depths, "across": across, "lengths": lengths,
            "forwards": torch.stack([cosines, -sines], dim=1),  # columns, rows of the image
            "sidewards": torch.stack([sines, cosines], dim=1),
        }  # fmt: skip
        for name, values in buffers.items():
            self.register_buffer(name, values.float(), persistent=False)

    def project(self, x: Tensor) -> Tensor:
        images, across = x.transpose(0, 1), self.across.flatten(1)
        views = [
            across @ grid_sample(images, samples, align_corners=False)[0].flatten(0, 1) for samples in self._samples()
        ]
        return self.lengths * torch.stack(views)[None]

    def back_project(self, y: Tensor) -> Tensor:
        slices, across = self.across.shape[1], self.across.flatten(1).T
        x = y.new_zeros(1, slices, self.size, self.size)
        for view, samples in zip((self.lengths * y)[0], self._samples(), strict=True):
            planes = (across @ view).unflatten(0, (slices, -1))[None]
            x += _pull_back(x, samples, planes)
        return x.transpose(0, 1)

    def keep(self, slices: Slices) -> None:
        self.across = self.across[:, slices]

    def _samples(self) -> Iterator[Tensor]:
        """For each view, where rays cross the planes: `(1, planes, detectors, 2)`, in `grid_sample` coordinates."""
        for forward, sideways in zip(self.forwards, self.sidewards, strict=True):
            rays = forward + self.slopes[:, None] * sideways
            start = self.aside * sideways - self.source * forward
            yield (2 / self.size * (start + self.depths[:, None, None] * rays))[None]


class FreeRays(ConeRays):
    """Rays from any source to any flat detector, given view by view.

    A ray is sampled once per pixel (or once per slice, if slices are thinner) with trilinear interpolation.

    Args:
        shape: of the volume.
        vectors: `(views, 12)`, see `ConeBeamCT`.
        rows: of the detector.
        detectors: number of bins in a row.
        thickness: distance between slices.
    """

    vectors: Tensor
    members: Tensor
    u: Tensor
    v: Tensor
    depths: Tensor
    extent: Tensor

    def __init__(self, shape: Shape, vectors: np.ndarray, rows: int, detectors: int, thickness: float) -> None:
        super().__init__()
        slices, height, width = self.shape = shape
        extent = torch.tensor([width, height, slices * thickness], dtype=torch.float64)
        self.step = min(1.0, thickness)
        count = math.ceil(float(extent.norm()) / self.step) + 1
        buffers = {
            "vectors": torch.from_numpy(np.array(vectors, float)).unflatten(1, (4, 3)), "extent": extent,
            "u": _centred(detectors), "v": _centred(rows),
            "depths": self.step * _centred(count),  # of samples, from the point nearest the middle of the volume
        }  # fmt: skip
        for name, values in buffers.items():
            self.register_buffer(name, values.float(), persistent=False)
        self.register_buffer("members", torch.arange(slices), persistent=False)

    def project(self, x: Tensor) -> Tensor:
        volume = rearrange(x.new_zeros(self.shape).index_copy(0, self.members, x[:, 0]), "s h w -> 1 1 s h w")
        views = [
            torch.cat([grid_sample(volume, samples, align_corners=False)[0, 0].sum(-1) for samples in view])
            for view in self._samples()
        ]
        return self.step * torch.stack(views)[None]

    def back_project(self, y: Tensor) -> Tensor:
        volume = y.new_zeros(1, 1, *self.shape)
        for view, parts in zip(self.step * y[0], self._samples(), strict=True):
            rows = iter(view)
            for samples in parts:
                values = torch.stack([next(rows) for _ in range(samples.shape[1])])
                volume += _pull_back(volume, samples, values[None, None, ..., None].expand(1, 1, *samples.shape[1:4]))
        return volume[0, 0, self.members, None]

    def keep(self, slices: Slices) -> None:
        self.members = self.members[slices]

    def _samples(self) -> Iterator[Iterator[Tensor]]:
        """For each view, some rows at a time, `(1, rows, detectors, samples, 3)` in `grid_sample` coordinates."""
        rows = max(1, SAMPLES_AT_ONCE // (len(self.u) * len(self.depths)))
        for view in self.vectors:
            yield (self._positions(view, v) for v in self.v.split(rows))

    def _positions(self, view: Tensor, v: Tensor) -> Tensor:
        source, centre, right, down = view
        bins = centre + self.u[:, None] * right + v[:, None, None] * down
        rays = torch.nn.functional.normalize(bins - source, dim=-1)
        nearest = source - (rays @ source)[..., None] * rays
        return ((nearest[..., None, :] + self.depths[:, None] * rays[..., None, :]) * (2 / self.extent))[None]


def _pull_back(images: Tensor, samples: Tensor, values: Tensor) -> Tensor:
    """Adjoint of sampling `images` at `samples`, applied to `values`."""
    pull: Any = vjp(lambda x: grid_sample(x, samples, align_corners=False), images)[1]
    found: Tensor = pull(values)[0]
    return found


def _centred(count: int) -> Tensor:
    """`count` positions with step 1, centred at 0."""
    return torch.arange(count) - (count - 1) / 2
