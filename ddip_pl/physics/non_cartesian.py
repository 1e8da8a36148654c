"""Non-Cartesian magnetic resonance imaging, with one coil or several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torchkbnufft as tkbn
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.noise import kspace_noise
from ddip_pl.physics.operator import LinearOperator, spectral_norm
from ddip_pl.physics.sensitivity import CoilMaps
from ddip_pl.physics.trajectory import Trajectory
from ddip_pl.solvers.cg import conjugate_gradient

OVERSAMPLING = 2  # of torchkbnufft's grid, whose size its orthonormal transform divides by
TOEPLITZ = tkbn.ToepNufft()


class NonCartesianMRI(LinearOperator):
    """`A = F S / scale`: coil sensitivities S and the Fourier transform F at the positions of a trajectory.

    `F x = sum_r x(r) exp(-i k r) / n`, for n x n pixels, the middle one of which (`n // 2`) is the origin, by gridding
    with a Kaiser-Bessel kernel (torchkbnufft; Fessler & Sutton 2003). `A^T A` needs no gridding: it is a convolution,
    which two FFTs of twice the size do (Toeplitz embedding; Fessler et al. 2005).

    Images are (slices, 2, image_size, image_size), k-space is (slices, coils, samples), complex. All slices have the
    same trajectory; the maps are of one set or have one for each slice.

    Args:
        image_size: height and width of the image, in pixels.
        trajectory: (samples, 2), of (ky, kx) in radians a pixel, within -pi .. pi; or what makes it.
        maps: sensitivities (slices or 1, coils, image_size, image_size), complex; or what makes them; by default one
            coil that sees everything alike.
        iterations: conjugate-gradient steps of the pseudo-inverse.
        density: compensation for the density of the samples, (samples,), of any mean; by default that of Pipe & Menon.

    Raises:
        InputError: positions, maps or density are of another shape, or out of range.
    """

    channels = 2
    trajectory: Tensor
    maps: Tensor
    kernel: Tensor
    weighted_kernel: Tensor
    density: Tensor

    def __init__(
        self,
        image_size: int,
        trajectory: Trajectory | Tensor,
        maps: CoilMaps | Tensor | None = None,
        iterations: int = 10,
        density: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(image_size, int) or image_size < 4:
            raise InputError(f"image_size is {image_size}; give one number of at least 4 pixels, images are square")
        if iterations < 1:
            raise InputError(f"iterations of NonCartesianMRI is {iterations}; give at least 1")
        self.image_size, self.iterations = image_size, iterations
        positions = _positions(trajectory(image_size) if isinstance(trajectory, Trajectory) else trajectory)
        maps = torch.ones(1, 1, image_size, image_size, dtype=torch.complex64) if maps is None else maps
        maps = maps(image_size) if isinstance(maps, CoilMaps) else maps
        if maps.ndim != 4 or maps.shape[-2:] != (image_size, image_size) or not maps.isfinite().all() or not maps.any():
            raise InputError(
                f"coil maps of shape {tuple(maps.shape)}; images of {image_size} x {image_size} need (slices or 1, "
                f"coils, {image_size}, {image_size}), finite and not all zero"
            )
        grid = (image_size, image_size)
        if density is None:
            density = tkbn.calc_density_compensation_function(positions, grid)[0, 0].real
        density = density.float()
        if density.shape != positions.shape[1:] or not (density >= 0).all() or not 0 < density.sum() < torch.inf:
            raise InputError(
                f"density compensation of shape {tuple(density.shape)}; {positions.shape[1]} samples need "
                f"({positions.shape[1]},), at least 0 and not all 0"
            )
        self._complex_buffer("maps", OVERSAMPLING * maps)
        self.register_buffer("trajectory", positions, persistent=False)
        self.register_buffer("density", density / density.mean(), persistent=False)
        self._complex_buffer("kernel", tkbn.calc_toeplitz_kernel(positions, grid, norm="ortho"))
        weights = self.density[None].to(torch.complex64)
        self._complex_buffer("weighted_kernel", tkbn.calc_toeplitz_kernel(positions, grid, weights, norm="ortho"))
        shape = (len(maps), 2, *grid)
        self.scale = spectral_norm(self.normal, shape, torch.float32, tolerance=1e-6)
        self.maps /= self.scale

    def forward(self, x: Tensor) -> Tensor:
        """k-space (slices, coils, samples) of images `x` (slices, 2, image_size, image_size).

        Raises:
            ValueError: `x` has another shape.
        """
        transform = _transform(tkbn.KbNufft, self.image_size, self.maps.dtype, self.maps.device)
        return transform(self._coil_images(x), self.trajectory, norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        """Images (slices, 2, image_size, image_size) of k-space `y` (slices, coils, samples).

        Raises:
            ValueError: `y` has another shape.
        """
        self._check_samples(y)
        y = y.to(self.maps.dtype.to_complex())
        gridding = _transform(tkbn.KbNufftAdjoint, self.image_size, self.maps.dtype, self.maps.device)
        return self._combined(gridding(y, self.trajectory, norm="ortho"))

    def normal(self, x: Tensor) -> Tensor:
        """`A^T A x`, as a convolution."""
        return self._combined(TOEPLITZ(self._coil_images(x), _complex(self.kernel), norm="ortho"))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A few conjugate-gradient steps on `A^T W A x = A^T W y` from 0, with density compensation W.

        (Pruessmann et al. 2001; by default W of Pipe & Menon 1999.)

        Raises:
            ValueError: `y` is not (slices, coils, samples).
        """
        self._check_samples(y)

        def normal(x: Tensor) -> Tensor:
            return self._combined(TOEPLITZ(self._coil_images(x), _complex(self.weighted_kernel), norm="ortho"))

        return conjugate_gradient(normal, self.adjoint(self.density * y), self.iterations)

    def visible(self, x: Tensor) -> Tensor:
        return torch.where((self.maps != 0).any(-1).any(1, keepdim=True), x, 0)

    def noise_level(self, y: Tensor) -> float:
        """See `kspace_noise`."""
        return kspace_noise(y, self.trajectory.norm(dim=0, keepdim=True))

    def select(self, slices: slice | Sequence[int] | Tensor) -> NonCartesianMRI:
        """The operator of some slices, with the maps of these."""
        part = copy.copy(self)
        part._buffers = self._buffers | {"maps": self.maps if len(self.maps) == 1 else self.maps[slices]}
        return part

    def extra_repr(self) -> str:
        coils, samples = self.maps.shape[1], self.trajectory.shape[1]
        return f"image_size={self.image_size}, channels=2, coils={coils}, samples={samples}, scale={self.scale:.4g}"

    @property
    def coil_maps(self) -> Tensor:
        """Sensitivities (slices or 1, coils, image_size, image_size), complex64, as they were given."""
        return (self.scale / OVERSAMPLING * _complex(self.maps)).to(torch.complex64)

    def _check_samples(self, y: Tensor) -> None:
        expected = self.maps.shape[1], self.trajectory.shape[1]
        if y.shape[1:] != expected:
            raise ValueError(f"expected a tensor of shape (slices, {expected[0]}, {expected[1]}), got {tuple(y.shape)}")

    def _coil_images(self, x: Tensor) -> Tensor:
        slices, expected = len(self.maps), (2, self.image_size, self.image_size)
        if x.shape[1:] != expected or (slices > 1 and len(x) != slices):
            shape = ", ".join(map(str, (slices if slices > 1 else "slices", *expected)))
            raise ValueError(f"expected a tensor of shape ({shape}), got {tuple(x.shape)}")
        x = x.to(self.maps.dtype)
        return _complex(self.maps) * torch.complex(x[:, :1], x[:, 1:])

    def _combined(self, coil_images: Tensor) -> Tensor:
        image = (_complex(self.maps).conj() * coil_images).sum(1, keepdim=True)
        return torch.cat([image.real, image.imag], dim=1)

    def _complex_buffer(self, name: str, values: Tensor) -> None:
        """Real and imaginary part apart, as modules cast complex buffers to real ones."""
        self.register_buffer(name, torch.view_as_real(values.to(torch.complex64)).contiguous(), persistent=False)


@cache
def _transform(kind: Any, image_size: int, dtype: torch.dtype, device: torch.device) -> Any:
    """A transform of torchkbnufft; no part of the operator, as modules cast its complex tables to real ones."""
    return kind((image_size, image_size), dtype=dtype.to_complex(), device=device)


def _complex(buffer: Tensor) -> Tensor:
    return torch.view_as_complex(buffer)


def _positions(trajectory: Any) -> Tensor:
    """Positions as torchkbnufft has them, `(2, samples)`."""
    positions = torch.as_tensor(trajectory)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
        raise InputError(f"trajectory of shape {tuple(positions.shape)}; expected (samples, 2), of (ky, kx)")
    if not positions.isfinite().all() or positions.abs().max() > torch.pi * (1 + 1e-6):
        raise InputError(
            f"trajectory with positions up to {float(positions.abs().max()):.4g}; expected radians a pixel, within "
            "-pi .. pi"
        )
    return positions.T.float().contiguous()
