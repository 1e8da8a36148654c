"""MRI with receive coils: what Cartesian and non-Cartesian sampling have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.noise import kspace_noise, surplus_noise
from ddip_pl.physics.operator import LinearOperator, Shape
from ddip_pl.physics.sensitivity import CoilMaps


class MultiCoilMRI(LinearOperator):
    """`A = E S`: coil sensitivities `S`, then the encoding `E` of each coil's image in k-space.

    Images are `(slices, channels, height, width)`, k-space is `(slices, coils, ...)`, complex. Results have the
    operator's precision. All slices share one set of maps, or each has its own. The state dict is empty.

    Args:
        shape: of the volume: `(slices, height, width)`.
        maps: `(slices or 1, coils, height, width)`, complex, including any factor moved here from `E`.
        channels: 1 for real images, 2 for complex ones.
    """

    per_slice: ClassVar[tuple[str, ...]] = ("maps",)
    maps: Tensor

    def __init__(self, shape: Shape, maps: Tensor, channels: int = 2):
        super().__init__(shape)
        self.channels = channels
        self.register_complex("maps", maps)

    @property
    @abstractmethod
    def coil_maps(self) -> Tensor:
        """Sensitivities `(slices or 1, coils, height, width)`, complex64, as given to the operator."""

    @property
    @abstractmethod
    def radius(self) -> Tensor:
        """Distance of the samples from the zero frequency, `(slices or 1, samples)`; nan if not measured."""

    @property
    def coils(self) -> int:
        """Number of coils."""
        return self.maps.shape[1]

    def coil_images(self, x: Tensor) -> Tensor:
        """`S x`, `(slices, coils, height, width)`, complex.

        Raises:
            InputError: `x` has another shape.
        """
        self.expect(x, self.domain)
        x = x.to(self.maps.dtype)
        image = torch.complex(x[:, :1], x[:, 1:]) if self.channels == 2 else x
        return torch.view_as_complex(self.maps) * image

    def combined(self, coil_images: Tensor) -> Tensor:
        """`S^H` applied to coil images: `(slices, channels, height, width)`, real."""
        image = (torch.view_as_complex(self.maps).conj() * coil_images).sum(1, keepdim=True)
        return image.real if self.channels == 1 else torch.cat([image.real, image.imag], dim=1)

    def visible(self, x: Tensor) -> Tensor:
        return torch.where((self.maps != 0).any(-1).any(1, keepdim=True), x, 0)

    def noise_level(self, y: Tensor) -> float:
        """The lower of `kspace_noise` and `surplus_noise`: what else is in the data can only add to them."""
        return min(kspace_noise(y.flatten(2), self.radius), surplus_noise(self, y))

    def register_complex(self, name: str, values: Tensor) -> None:
        """Register real and imaginary part as one real buffer, because modules cast complex buffers to real ones."""
        self.register_buffer(name, torch.view_as_real(values.to(torch.complex64)).contiguous(), persistent=False)


def checked_maps(maps: CoilMaps | Tensor, shape: Shape, coils: int | None = None) -> Tensor:
    """Coil maps `(slices or 1, coils, height, width)`, complex.

    Args:
        maps: the maps, or a `CoilMaps` that makes them.
        shape: of the volume.
        coils: expected number of coils, if known.

    Raises:
        InputError: the maps have another shape, are not finite, or are all zero in a slice.
    """
    slices, height, width = shape
    maps = maps((height, width)) if isinstance(maps, CoilMaps) else maps
    fits = maps.ndim == 4 and maps.shape[-2:] == (height, width) and len(maps) in (1, slices)
    if not fits or coils not in (None, maps.shape[1]):
        expected = f"({slices}, {coils or 'coils'}, {height}, {width})"
        raise InputError(f"coil maps of shape {tuple(maps.shape)}; expected {expected}, or one slice of it")
    if not maps.isfinite().all() or not maps.abs().flatten(1).any(1).all():
        raise InputError("coil maps of a slice are all zero or not finite; calibrate them again")
    return maps
