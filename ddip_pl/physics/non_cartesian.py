"""Non-Cartesian magnetic resonance imaging, with one or several coils."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torchkbnufft as tkbn
from torch import Tensor
from torch.nn import functional as F

from ddip_pl.errors import InputError
from ddip_pl.physics.coils import MultiCoilMRI, checked_maps
from ddip_pl.physics.description import array, length, numbers, square_pixel
from ddip_pl.physics.operator import Description, Shape, spectral_norm, volume_shape
from ddip_pl.physics.sensitivity import CoilMaps
from ddip_pl.physics.trajectory import Trajectory
from ddip_pl.settings import PositiveInt, checked
from ddip_pl.solvers.cg import conjugate_gradient

OVERSAMPLING = 2  # of torchkbnufft's grid; its orthonormal transform divides by the size of that grid
JUMP = 4  # times the usual distance between samples; a longer one leads to the next readout
SMALLEST = 4  # image size in pixels that torchkbnufft's kernel fits into
TOEPLITZ = tkbn.ToepNufft()


@checked
class NonCartesianMRI(MultiCoilMRI):
    """`A = F S / scale`: coil sensitivities `S` and the Fourier transform `F` at the positions of a trajectory.

    `F x = sum_r x(r) exp(-i k r) / n` for n x n pixels, with the origin at pixel `n // 2`, is computed by gridding with
    a Kaiser-Bessel kernel (torchkbnufft; Fessler & Sutton 2003). `A^T A` needs no gridding: it is a convolution, done
    by two FFTs of twice the size (Toeplitz embedding; Fessler et al. 2005).

    Images are complex, k-space is `(slices, coils, samples)`. All slices share one trajectory.

    Args:
        shape: of the volume: `(slices, height, width)`; height and width must be equal.
        trajectory: `(samples, 2)`, (ky, kx) in radians per pixel, within -pi .. pi; or a `Trajectory`.
        maps: sensitivities `(slices or 1, coils, height, width)`, complex; or a `CoilMaps`; by default one coil of
            sensitivity 1.
        iterations: conjugate-gradient steps of the pseudo-inverse.
        density: density compensation `(samples,)`, with any mean; by default by the method of Pipe & Menon (1999).

    Raises:
        InputError: images are not square, or positions, maps or density have another shape or are out of range.
    """

    kind = "non_cartesian"
    axes = ("slices", "coils", "samples")
    trajectory: Tensor
    kernel: Tensor
    weighted_kernel: Tensor
    density: Tensor

    def __init__(
        self,
        shape: Shape,
        trajectory: Trajectory | Tensor,
        maps: CoilMaps | Tensor | None = None,
        iterations: PositiveInt = 10,
        density: Tensor | None = None,
    ):
        _, size, width = volume_shape(shape)
        if size != width or size < SMALLEST:
            raise InputError(f"images of {size} x {width}; expected square images, at least {SMALLEST} x {SMALLEST}")
        positions = checked_positions(trajectory(size) if isinstance(trajectory, Trajectory) else trajectory)
        maps = torch.ones(1, 1, size, size, dtype=torch.complex64) if maps is None else maps
        super().__init__(shape, OVERSAMPLING * checked_maps(maps, shape))
        self.iterations = iterations
        grid = (size, size)
        if density is None:
            density = tkbn.calc_density_compensation_function(positions, grid)[0, 0].real
        density = density.float()
        if density.shape != positions.shape[1:] or not (density >= 0).all() or not 0 < density.sum() < torch.inf:
            raise InputError(
                f"density compensation of shape {tuple(density.shape)} for {positions.shape[1]} samples; expected one "
                "value for each, at least 0 and not all 0"
            )
        self.register_buffer("trajectory", positions, persistent=False)
        self.register_buffer("density", density / density.mean(), persistent=False)
        self.register_complex("kernel", tkbn.calc_toeplitz_kernel(positions, grid, norm="ortho"))
        weights = self.density[None].to(torch.complex64)
        self.register_complex("weighted_kernel", tkbn.calc_toeplitz_kernel(positions, grid, weights, norm="ortho"))
        norm = spectral_norm(self.normal, (len(self.maps), *self.domain[1:]), torch.float32, tolerance=1e-6)
        self.maps /= norm
        self.scale, self.norm = norm, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """K-space `(slices, coils, samples)` of images `x (slices, 2, height, width)`.

        Raises:
            InputError: `x` has another shape.
        """
        return self.transform(tkbn.KbNufft)(self.coil_images(x), self.trajectory, norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        """Images `(slices, 2, height, width)` of k-space `y (slices, coils, samples)`.

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        y = y.to(self.maps.dtype.to_complex())
        return self.combined(self.transform(tkbn.KbNufftAdjoint)(y, self.trajectory, norm="ortho"))

    def normal(self, x: Tensor) -> Tensor:
        """`A^T A x`, as a convolution."""
        return self.convolved(x, self.kernel)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A few conjugate-gradient steps on `A^T W A x = A^T W y` from 0, with density compensation `W`.

        See Pruessmann et al. (2001).

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        right = self.adjoint(self.density * y)
        return conjugate_gradient(lambda x: self.convolved(x, self.weighted_kernel), right, self.iterations)

    def convolved(self, x: Tensor, kernel: Tensor) -> Tensor:
        """`A^T W A x`, with `W` given by its Toeplitz `kernel`."""
        return self.combined(TOEPLITZ(self.coil_images(x), torch.view_as_complex(kernel), norm="ortho"))

    def transform(self, kind: Any) -> Any:
        """A torchkbnufft transform in the operator's precision, on its device."""
        return cached_transform(kind, self.shape[1:], self.maps.dtype.to_complex(), self.maps.device)

    @property
    def range(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.shape[0], self.coils, self.trajectory.shape[1]

    def readouts(self) -> Tensor:
        """One label for each spoke or spiral, which end where the trajectory jumps; without jumps, for each sample."""
        steps = self.trajectory.diff(dim=1).norm(dim=0)
        labels = F.pad((steps > JUMP * steps.median()).cumsum(0), (1, 0))
        labels = labels if labels[-1] > 0 else torch.arange(len(labels), device=labels.device)
        return labels.expand(self.range[1:])

    @property
    def radius(self) -> Tensor:
        return self.trajectory.norm(dim=0, keepdim=True)

    @property
    def coil_maps(self) -> Tensor:
        return (self.scale / OVERSAMPLING * torch.view_as_complex(self.maps)).to(torch.complex64)

    def describe(self, pixel: tuple[float, float]) -> Description:
        side = square_pixel(pixel, "trajectories")
        return {
            "trajectory": self.trajectory.T.numpy(force=True).astype(np.float64) / (2 * np.pi * side),
            "density_compensation": self.density.numpy(force=True),
            "coil_maps": self.coil_maps.numpy(force=True),
            "image_size": self.shape[1],
            "pixel_size": side,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> NonCartesianMRI:
        slices, coils, samples = data
        [size], pixel = numbers(description, "image_size", 1), length(description, "pixel_size")
        shape = slices, int(size), int(size)
        positions = positions_in_radians(array(description, "trajectory"), samples, pixel)
        density, maps = None, None
        if "density_compensation" in description:
            density = torch.from_numpy(array(description, "density_compensation").astype(np.float32))
        if coils > 1 or "coil_maps" in description:
            given = torch.from_numpy(array(description, "coil_maps", "biufc").astype(np.complex64))
            maps = checked_maps(given, shape, coils)
        return cls(shape, positions, maps, density=density)

    def extra_repr(self) -> str:
        _, coils, samples = self.range
        return f"shape={self.shape}, channels=2, coils={coils}, samples={samples}, scale={self.scale:.4g}"


@cache
def cached_transform(kind: Any, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Any:
    """A torchkbnufft transform, kept outside the operator because modules cast its complex tables to real ones."""
    return kind(grid, dtype=dtype, device=device)


def checked_positions(trajectory: Tensor) -> Tensor:
    """Positions in torchkbnufft's layout, `(2, samples)`.

    Raises:
        InputError: they have another shape or are out of range.
    """
    if trajectory.ndim != 2 or trajectory.shape[1] != 2 or len(trajectory) == 0:
        raise InputError(f"trajectory of shape {tuple(trajectory.shape)}; expected (samples, 2) with (ky, kx)")
    furthest = float(trajectory.abs().max())
    if not furthest <= math.pi * (1 + 1e-6):  # also true for NaN
        raise InputError(f"trajectory has positions up to {furthest:.4g}; expected radians per pixel, within -pi .. pi")
    return trajectory.T.float().contiguous()


def positions_in_radians(trajectory: np.ndarray, samples: int, pixel: float) -> Tensor:
    """Convert spatial frequencies in 1/mm to positions in radians per pixel.

    Args:
        trajectory: `(samples, 2)`, (ky, kx) in 1/mm.
        samples: expected number of samples.
        pixel: side of a pixel, in mm.

    Raises:
        InputError: they have another shape or are out of range for such pixels.
    """
    if trajectory.shape != (samples, 2):
        raise InputError(
            f"trajectory of shape {trajectory.shape} for {samples} samples; expected ({samples}, 2) with (ky, kx)"
        )
    furthest = float(np.abs(trajectory).max())
    if not 0 < furthest <= 0.5 / pixel * (1 + 1e-6):  # also true for NaN
        raise InputError(
            f"trajectory has positions up to {furthest:g} / mm; pixels of {pixel:g} mm hold at most "
            f"{0.5 / pixel:g} / mm; convert them to cycles per mm, or give a smaller pixel_size"
        )
    return torch.from_numpy(2 * np.pi * pixel * trajectory.astype(np.float64))
