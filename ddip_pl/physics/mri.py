"""Cartesian magnetic resonance imaging, with one coil or several (SENSE)."""

from __future__ import annotations

import cmath
import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.noise import kspace_noise
from ddip_pl.physics.operator import ImageSize, LinearOperator, height_width, spectral_norm
from ddip_pl.physics.sampling import Sampling
from ddip_pl.physics.sensitivity import CoilMaps
from ddip_pl.solvers.cg import conjugate_gradient


class CartesianMRI(LinearOperator):
    """`A = M F S / scale`: coil sensitivities S, centred orthonormal Fourier transform F, sampling mask M.

    Images are (slices, channels, height, width), k-space (slices, coils, ky, kx), complex and 0 where it is
    not sampled; results have the operator's precision. Mask and maps are of one set for all slices or have one for
    each; they move with `.to(device)` and `.double()` and are not part of the state dict.

    A shift in one domain is a phase in the other, so that `F = c D FFT D` with a diagonal matrix `D` of phases and a
    number `c`. These are multiplied into mask and maps once, and nothing is shifted later.

    Args:
        mask: `(slices or 1, ky, kx)`, bool.
        maps: `(slices or 1, coils, height, width)`, complex.
        channels: 1 for real images, 2 for complex ones.
        scale: spectral norm of `M F S`.
    """

    mask: Tensor
    weights: Tensor
    maps: Tensor

    def __init__(self, mask: Tensor, maps: Tensor, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        height, width = mask.shape[-2:]
        self.shape = height, width
        self.image_size: ImageSize = height if height == width else (height, width)
        self.channels = channels
        phase = _phase(self.shape)  # D
        shift = cmath.exp(-2j * math.pi * sum((length // 2) ** 2 / length for length in self.shape))  # c
        mask = mask[:, None]
        # Real and imaginary part are apart, as modules cast complex buffers to real ones.
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("weights", _parts(mask * shift * phase), persistent=False)
        self.register_buffer("maps", _parts(maps * phase), persistent=False)
        self._set_scale(scale)

    def forward(self, x: Tensor) -> Tensor:
        """k-space (slices, coils, ky, kx) of images `x` (slices, channels, height, width).

        Raises:
            ValueError: `x` has another shape.
        """
        self._check(x, self.channels)
        x = x.to(self.maps.dtype)
        image = torch.complex(x[:, :1], x[:, 1:]) if self.channels == 2 else x
        return self._weights() * torch.fft.fft2(torch.view_as_complex(self.maps) * image, norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        """Images (slices, channels, height, width) of k-space `y` (slices, coils, ky, kx).

        Raises:
            ValueError: `y` has another shape.
        """
        self._check(y, self.maps.shape[1])
        y = y.to(self.maps.dtype.to_complex())
        coil_images = torch.fft.ifft2(self._weights().conj() * y, norm="ortho")
        image = (torch.view_as_complex(self.maps).conj() * coil_images).sum(1, keepdim=True)
        return image.real if self.channels == 1 else torch.cat([image.real, image.imag], dim=1)

    def values(self, y: Tensor) -> Tensor:
        return (self.maps.shape[1] * self.mask.flatten(1).sum(1).float()).expand(len(y))

    def sampled(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, y, 0)

    def visible(self, x: Tensor) -> Tensor:
        return torch.where((self.maps != 0).any(-1).any(1, keepdim=True), x, 0)

    def noise_level(self, y: Tensor) -> float:
        """See `kspace_noise`."""
        rows, columns = (torch.linspace(-1, 1, length, device=y.device) for length in self.shape)
        radius = torch.where(self.mask[:, 0], torch.hypot(rows[:, None], columns), torch.nan)
        return kspace_noise(y.flatten(2), radius.flatten(1))

    def select(self, slices: slice | Sequence[int] | Tensor) -> CartesianMRI:
        """The operator of some slices, with the masks and maps of these."""
        part = copy.copy(self)
        part._buffers = {
            name: buffer if buffer is None or len(buffer) == 1 else buffer[slices]
            for name, buffer in self._buffers.items()
        }
        return part

    def extra_repr(self) -> str:
        acceleration = self.mask.numel() / int(self.mask.sum())
        return (
            f"image_size={self.image_size}, channels={self.channels}, coils={self.maps.shape[1]}, "
            f"acceleration={acceleration:.3g}, scale={self.scale:.4g}"
        )

    @property
    def coil_maps(self) -> Tensor:
        """Sensitivities (slices or 1, coils, height, width), complex64, as they were given."""
        maps = torch.view_as_complex(self.maps) * _phase(self.shape).to(self.maps.device).conj()
        return maps.to(torch.complex64)

    def _weights(self) -> Tensor:
        return torch.view_as_complex(self.weights)

    def _set_scale(self, scale: float) -> None:
        self.weights /= scale
        self.scale = scale

    def _check(self, tensor: Tensor, channels: int) -> None:
        slices = max(len(self.mask), len(self.maps))
        expected = (channels, *self.shape)
        if tensor.shape[1:] != expected or (slices > 1 and len(tensor) != slices):
            shape = ", ".join(map(str, (slices if slices > 1 else "slices", *expected)))
            raise ValueError(f"expected a tensor of shape ({shape}), got {tuple(tensor.shape)}")


class SingleCoilMRI(CartesianMRI):
    """Cartesian MRI with one coil of sensitivity 1: `A = M F`, in unit spectral norm; see `CartesianMRI`.

    Args:
        image_size: height and width of the image in pixels, one number where they are the same.
        mask: (ky, kx) for all slices or (slices, ky, kx), not 0 where k-space is measured; or what makes it.
        complex_image: whether images are complex, with two channels (real, imaginary), or real with one.

    Raises:
        InputError: the mask is of another size, or empty.
    """

    density: Tensor

    def __init__(self, image_size: ImageSize, mask: Sampling | Tensor, complex_image: bool = False) -> None:
        mask = _mask(mask, image_size)
        # The spectrum of a real image is Hermitian, so A^T A = F^H gram F also where two positions k and -k share it.
        mirrored = mask.flip(-2, -1).roll([1 - length % 2 for length in mask.shape[-2:]], (-2, -1))
        gram = mask.double() if complex_image else (mask.double() + mirrored) / 2
        scale = gram.max().sqrt().item()
        super().__init__(mask, torch.ones(1, 1, *mask.shape[-2:]), 2 if complex_image else 1, scale)
        density = torch.where(mask, scale**2 / gram.clamp(min=0.5), 0).float()
        self.register_buffer("density", density[:, None], persistent=False)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Exact pseudo-inverse of k-space `y`: zero-filled for complex images.

        For real images a position k whose mirror image -k is not measured stands for both.

        Raises:
            ValueError: `y` is not (slices, 1, ky, kx).
        """
        self._check(y, 1)
        return self.adjoint(self.density * y)


class SENSE(CartesianMRI):
    """Cartesian MRI of complex images with several coils (Pruessmann et al. 1999); see `CartesianMRI`.

    The spectral norm is 1 to about 0.1 %, by power iteration.

    Args:
        image_size: height and width of the image in pixels, one number where they are the same.
        mask: (ky, kx) for all slices or (slices, ky, kx), not 0 where k-space is measured; or what makes it.
        maps: sensitivities (slices or 1, coils, height, width), complex; or what makes them.
        iterations: conjugate-gradient steps of the pseudo-inverse; few keep noise from being amplified.

    Raises:
        InputError: mask or maps are of another size, or all zero.
    """

    def __init__(
        self, image_size: ImageSize, mask: Sampling | Tensor, maps: CoilMaps | Tensor, iterations: int = 10
    ) -> None:
        mask, maps = _mask(mask, image_size), _maps(maps, image_size)
        if min(len(mask), len(maps)) > 1 and len(mask) != len(maps):
            raise InputError(f"masks of {len(mask)} slices and coil maps of {len(maps)}; give as many, or one for all")
        if iterations < 1:
            raise InputError(f"iterations of SENSE is {iterations}; give at least 1")
        super().__init__(mask, maps, channels=2)
        self.iterations = iterations
        shape = (max(len(mask), len(maps)), 2, *self.shape)
        norm = spectral_norm(self.normal, shape, self.maps.dtype, tolerance=1e-6)
        if norm == 0:
            raise InputError("nothing is measured where the coils are sensitive; check mask and coil maps")
        self._set_scale(norm)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A few conjugate-gradient steps on `A^T A x = A^T y` from 0 (Pruessmann et al. 2001).

        Raises:
            ValueError: `y` is not (slices, coils, ky, kx).
        """
        return conjugate_gradient(self.normal, self.adjoint(y), self.iterations)


def _phase(shape: tuple[int, int]) -> Tensor:
    """`D` of `CartesianMRI`, (height, width), complex128."""
    rows, columns = (torch.arange(length, dtype=torch.float64) * (length // 2) / length for length in shape)
    return torch.exp(2j * math.pi * (rows[:, None] + columns))


def _parts(values: Tensor) -> Tensor:
    return torch.view_as_real(values.to(torch.complex64)).contiguous()


# --- settings ---------------------------------------------------------------------------------------------


def _mask(mask: Sampling | Tensor, image_size: ImageSize) -> Tensor:
    """Mask (slices or 1, ky, kx), bool."""
    height, width = height_width(image_size)
    mask = mask(image_size) if isinstance(mask, Sampling) else mask
    if mask.ndim not in (2, 3) or mask.shape[-2:] != (height, width):
        raise InputError(
            f"mask of shape {tuple(mask.shape)}; images of {height} x {width} need ({height}, "
            f"{width}), or that for each slice"
        )
    mask = mask.reshape(-1, height, width) != 0
    if not mask.flatten(1).any(1).all():
        raise InputError("a mask is all zero; expected something to be measured in every slice")
    return mask


def _maps(maps: CoilMaps | Tensor, image_size: ImageSize) -> Tensor:
    """Maps (slices or 1, coils, height, width), complex."""
    height, width = height_width(image_size)
    maps = maps(image_size) if isinstance(maps, CoilMaps) else maps
    if maps.ndim != 4 or maps.shape[-2:] != (height, width):
        raise InputError(
            f"coil maps of shape {tuple(maps.shape)}; images of {height} x {width} need (slices or 1, coils, "
            f"{height}, {width})"
        )
    if not maps.isfinite().all() or not maps.abs().flatten(1).any(1).all():
        raise InputError("coil maps of a slice are all zero, or not finite; calibrate them again")
    return maps
