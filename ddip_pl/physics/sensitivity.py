"""Sensitivity maps of receive coils, simulated by SigPy or calibrated by ESPIRiT."""

import hashlib
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.espirit import espirit_maps
from ddip_pl.physics.fft import ifft
from ddip_pl.physics.operator import ImageSize, height_width
from ddip_pl.settings import Range, checked

CACHE_VERSION = 3  # raise when the calibration changes
LOWER = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0)  # times `crop`
COVERED = 0.9  # share of the energy of the image that the maps cover


class CoilMaps(ABC):
    """Makes sensitivity maps for an image size."""

    @abstractmethod
    def __call__(self, image_size: ImageSize) -> Tensor:
        """Maps `(1, coils, height, width)`, complex64, one set for all slices, with `sum |S|^2 = 1` over the coils."""


@checked
class Birdcage(CoilMaps):
    """Coils in a ring around the image, each with the field of a straight wire.

    Args:
        coils: number of coils.
        radius: of the ring, in half image widths; above 1, outside the image.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self, coils: Annotated[int, Range(1, 1024)] = 8, radius: Annotated[float, Range(1, 1000, above=True)] = 1.5
    ) -> None:
        self.coils, self.radius = coils, radius

    def __call__(self, image_size: ImageSize) -> Tensor:
        from sigpy.mri import birdcage_maps  # takes seconds, so import it only here

        maps = birdcage_maps((self.coils, *height_width(image_size)), r=self.radius)
        return normalise_maps(torch.from_numpy(maps)[None].to(torch.complex64))


def espirit(kspace: Tensor, calibration: int = 24, crop: float = 0.95) -> Tensor:
    """Coil maps from the centre of k-space by ESPIRiT (Uecker et al. 2014), slice by slice.

    Args:
        kspace: `(slices, coils, ky, kx)` complex, centred, with a fully sampled centre.
        calibration: width of that centre.
        crop: maps are set to 0 (no object) where the eigenvalue of the calibration is below this. In a slice where that
            would remove a tenth of the energy, as in a narrow centre, the bound is lowered until it does not.

    Returns:
        Maps with the shape of `kspace`, complex64; `sum |S|^2` over the coils is 1, or 0 outside the object.

    Raises:
        InputError: the k-space or the width of its centre cannot be used, or a slice is all zero.
    """
    if kspace.ndim != 4 or not kspace.is_complex():
        raise InputError(
            f"k-space of shape {tuple(kspace.shape)}, {kspace.dtype}; expected (slices, coils, ky, kx), complex"
        )
    if not 8 <= calibration <= min(kspace.shape[-2:]):
        raise InputError(f"calibration is {calibration}; give a width between 8 and {min(kspace.shape[-2:])}")
    if not kspace.abs().flatten(1).amax(1).all():
        raise InputError("k-space of a slice is all zero; coil maps cannot be calibrated from it")
    height, width = kspace.shape[-2:]
    centre = kspace[..., middle(height, calibration), middle(width, calibration)].to(torch.complex64)
    return normalise_maps(torch.stack([object_maps(one, height, width, crop) for one in centre]))


def object_maps(centre: Tensor, height: int, width: int, crop: float) -> Tensor:
    """`espirit_maps`, with `crop` lowered until the maps cover the object, see `espirit`."""
    padded = centre.new_zeros(len(centre), height, width)
    padded[:, middle(height, centre.shape[1]), middle(width, centre.shape[2])] = centre
    energy = ifft(padded).abs().square().sum(0)
    for share in LOWER:
        maps = espirit_maps(centre, height, width, share * crop)
        if energy[maps.abs().sum(0) > 0].sum() >= COVERED * energy.sum():
            break
    return maps


def middle(length: int, size: int) -> slice:
    """The `size` central ones of `length` samples."""
    return slice(length // 2 - size // 2, length // 2 + (size + 1) // 2)


def calibrated_maps(kspace: Tensor, calibration: int = 24, folder: Path | None = None) -> Tensor:
    """The maps of `espirit`, cached between runs slice by slice.

    Args:
        kspace: see `espirit`.
        calibration: see `espirit`.
        folder: of the cache, by default `ddip-pl` in the user's cache.

    Raises:
        InputError: see `espirit`.
    """
    rows, columns = (middle(n, calibration) for n in kspace.shape[-2:])

    def maps_of(one: Tensor) -> Tensor:
        centre = hashlib.sha256(one[..., rows, columns].contiguous().numpy(force=True).tobytes()).hexdigest()
        key = [CACHE_VERSION, one.shape, calibration, centre]
        kept = cached(folder or user_cache(), "coil-maps", key, partial(_espirit_arrays, one, calibration))
        return torch.from_numpy(kept["maps"]).to(kspace.device)

    return torch.cat([maps_of(one) for one in kspace.split(1)])


def _espirit_arrays(kspace: Tensor, calibration: int) -> dict[str, np.ndarray]:
    return {"maps": espirit(kspace, calibration).numpy(force=True)}


def normalise_maps(maps: Tensor) -> Tensor:
    """Scale maps `(slices, coils, height, width)` to `sum |S|^2 = 1` over the coils wherever it is not 0."""
    length = torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return torch.where(length > 0, maps / length.clamp(min=torch.finfo(length.dtype).tiny), 0)
