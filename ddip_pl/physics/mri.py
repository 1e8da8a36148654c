"""Cartesian magnetic resonance imaging, with one or several coils (SENSE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.coils import MultiCoilMRI, checked_maps
from ddip_pl.physics.description import array, numbers
from ddip_pl.physics.fft import phases
from ddip_pl.physics.operator import Description, Shape, spectral_norm, volume_shape
from ddip_pl.physics.sampling import Sampling, measured_centre
from ddip_pl.physics.sensitivity import CoilMaps
from ddip_pl.settings import PositiveInt, checked


class CartesianMRI(MultiCoilMRI):
    """`A = M F S / scale`: coil sensitivities `S`, centred orthonormal Fourier transform `F`, sampling mask `M`.

    K-space is `(slices, coils, ky, kx)`, 0 where it is not sampled. Mask and maps include the phases of `F = c D FFT D`
    (see `fft.phases`).

    Args:
        shape: of the volume: `(slices, height, width)`.
        mask: `(slices or 1, ky, kx)`, bool.
        maps: `(slices or 1, coils, height, width)`, complex.
        channels: 1 for real images, 2 for complex ones.
        scale: spectral norm of `M F S`.
    """

    kind = "cartesian"
    axes = ("slices", "coils", "ky", "kx")
    per_slice: ClassVar[tuple[str, ...]] = ("maps", "mask", "weights")
    mask: Tensor
    weights: Tensor

    def __init__(self, shape: Shape, mask: Tensor, maps: Tensor, channels: int, scale: float = 1.0):
        diagonal, factor = phases(*mask.shape[-2:])
        super().__init__(shape, maps * diagonal, channels)
        mask = mask[:, None]
        self.register_buffer("mask", mask, persistent=False)
        self.register_complex("weights", mask * factor * diagonal)
        self.set_scale(scale)

    def set_scale(self, scale: float) -> None:
        """Divide the operator by its spectral norm `scale`."""
        self.weights /= scale
        self.scale, self.norm = scale, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """K-space `(slices, coils, ky, kx)` of images `x (slices, channels, height, width)`.

        Raises:
            InputError: `x` has another shape.
        """
        return torch.view_as_complex(self.weights) * torch.fft.fft2(self.coil_images(x), norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        """Images `(slices, channels, height, width)` of k-space `y (slices, coils, ky, kx)`.

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        y = y.to(self.maps.dtype.to_complex())
        return self.combined(torch.fft.ifft2(torch.view_as_complex(self.weights).conj() * y, norm="ortho"))

    @property
    def range(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.shape[0], self.coils, *self.shape[1:]

    def values(self, y: Tensor) -> Tensor:
        return (self.coils * self.mask.flatten(1).sum(1).float()).expand(len(y))

    def sampled(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, y, 0)

    def readouts(self) -> Tensor:
        """One label for each line of k-space if whole lines are measured, otherwise for each position.

        The fully measured centre is never hidden: nothing else tells how bright the image is. In real images, k and -k
        have the same label, since their values are conjugate.
        """
        mask = self.mask[:, 0]
        height, width = mask.shape[1:]
        rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
        if (mask == mask[:, :, :1]).all():
            labels = rows
        elif (mask == mask[:, :1]).all():
            labels = columns
        else:
            labels = width * rows + columns
        if self.channels == 1:
            labels = torch.minimum(labels, mirrored(labels))
        size = max(1, measured_centre(mask, min(height, width) // 4))
        centre = labels[tuple(slice(first := n // 2 - size // 2, first + size) for n in (height, width))]
        hideable = mask.any(0) & ~torch.isin(labels.contiguous(), centre.unique()).to(mask.device)
        return torch.where(hideable, labels.to(mask.device), -1).expand(self.range[1:])

    @property
    def radius(self) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, length, device=self.mask.device) for length in self.shape[1:])
        return torch.where(self.mask[:, 0], torch.hypot(rows[:, None], columns), torch.nan).flatten(1)

    @property
    def coil_maps(self) -> Tensor:
        diagonal = phases(*self.shape[1:])[0].to(self.maps.device)
        return (torch.view_as_complex(self.maps) * diagonal.conj()).to(torch.complex64)

    def describe(self, pixel: tuple[float, float]) -> Description:
        (_, rows, columns), (height, width) = self.shape, pixel
        return {
            "mask": self.mask[:, 0].numpy(force=True),
            "channels": self.channels,
            "field_of_view": (rows * height, columns * width),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> CartesianMRI:
        """`SingleCoilMRI` for one coil without maps, otherwise `SENSE`."""
        slices, coils, height, width = data
        shape = volume_shape((slices, height, width))
        [channels] = numbers(description, "channels", 1, (2,))
        if channels not in (1, 2) or (channels == 1 and coils > 1):
            raise InputError(f"{channels:g} image channels with {coils} coils; expected 2, or 1 with one coil")
        mask = checked_mask(torch.from_numpy(array(description, "mask", "biufc") != 0), shape)
        mask = mask[:1] if (mask == mask[:1]).all() else mask
        if coils == 1 and "coil_maps" not in description:
            return SingleCoilMRI(shape, mask, complex_image=channels == 2)
        maps = torch.from_numpy(array(description, "coil_maps", "biufc").astype(np.complex64))
        return SENSE(shape, mask, checked_maps(maps, shape, coils))

    def extra_repr(self) -> str:
        acceleration = self.mask.numel() / int(self.mask.sum())
        return (
            f"shape={self.shape}, channels={self.channels}, coils={self.coils}, acceleration={acceleration:.3g}, "
            f"scale={self.scale:.4g}"
        )


@checked
class SingleCoilMRI(CartesianMRI):
    """Cartesian MRI with one coil of sensitivity 1: `A = M F`, with unit spectral norm; see `CartesianMRI`.

    Args:
        shape: of the volume: `(slices, height, width)`.
        mask: `(ky, kx)` for all slices or `(slices, ky, kx)`, nonzero where k-space is measured; or a `Sampling`.
        complex_image: whether images are complex, with two channels (real, imaginary), or real, with one.

    Raises:
        InputError: the mask has another size or is empty.
    """

    per_slice = ("maps", "mask", "weights", "density")
    density: Tensor

    def __init__(self, shape: Shape, mask: Sampling | Tensor, complex_image: bool = False):
        mask = checked_mask(mask, shape)
        # Spectra of real images are Hermitian, so Re(F^H M F) = F^H gram F with the mean of M and its mirror image.
        gram = mask.double() if complex_image else (mask.double() + mirrored(mask)) / 2
        scale = gram.max().sqrt().item()
        super().__init__(shape, mask, torch.ones(1, 1, *mask.shape[-2:]), 2 if complex_image else 1, scale)
        density = torch.where(mask, scale**2 / gram.clamp(min=0.5), 0).float()
        self.register_buffer("density", density[:, None], persistent=False)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Exact pseudo-inverse of k-space `y (slices, 1, ky, kx)`: zero filling for complex images.

        For real images, a position k represents -k too if -k is not measured.

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        return self.adjoint(self.density * y)


@checked
class SENSE(CartesianMRI):
    """Cartesian MRI of complex images with several coils (Pruessmann et al. 1999); see `CartesianMRI`.

    The spectral norm is 1 to about 0.1 %, by power iteration. The pseudo-inverse is a few conjugate-gradient steps
    (Pruessmann et al. 2001).

    Args:
        shape: of the volume: `(slices, height, width)`.
        mask: `(ky, kx)` for all slices or `(slices, ky, kx)`, nonzero where k-space is measured; or a `Sampling`.
        maps: sensitivities `(slices or 1, coils, height, width)`, complex; or a `CoilMaps`.
        iterations: conjugate-gradient steps of the pseudo-inverse; more of them amplify noise.

    Raises:
        InputError: mask or maps have another size or are all zero.
    """

    def __init__(self, shape: Shape, mask: Sampling | Tensor, maps: CoilMaps | Tensor, iterations: PositiveInt = 10):
        super().__init__(shape, checked_mask(mask, shape), checked_maps(maps, shape), channels=2)
        self.iterations = iterations
        different = max(len(self.mask), len(self.maps))
        norm = spectral_norm(self.normal, (different, *self.domain[1:]), self.maps.dtype, tolerance=1e-6)
        if norm == 0:
            raise InputError("nothing is measured where the coils are sensitive; check mask and coil maps")
        self.set_scale(norm)

    def describe(self, pixel: tuple[float, float]) -> Description:
        return super().describe(pixel) | {"coil_maps": self.coil_maps.numpy(force=True)}


def mirrored(kspace: Tensor) -> Tensor:
    """The value at -k for each k in `(..., ky, kx)`."""
    return kspace.flip(-2, -1).roll([1 - length % 2 for length in kspace.shape[-2:]], (-2, -1))


def checked_mask(mask: Sampling | Tensor, shape: Shape) -> Tensor:
    """Mask `(slices or 1, ky, kx)`, bool.

    Args:
        mask: the mask, or a `Sampling` that makes it.
        shape: of the volume.

    Raises:
        InputError: the mask has another shape or is all zero in a slice.
    """
    slices, height, width = volume_shape(shape)
    mask = mask((height, width)) if isinstance(mask, Sampling) else mask
    if mask.shape[-2:] != (height, width) or (mask.ndim != 2 and mask.shape[:-2] not in ((1,), (slices,))):
        raise InputError(
            f"mask of shape {tuple(mask.shape)} for {slices} slices of {height} x {width}; expected "
            f"({height}, {width}), or one such mask for each slice"
        )
    mask = mask.reshape(-1, height, width) != 0
    if not mask.flatten(1).any(1).all():
        raise InputError("the mask of a slice is all zero; expected 1 at measured positions")
    return mask
