"""What files of k-space may leave out: the mask, and the maps of several coils."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.fft import fft
from ddip_pl.physics.mri import checked_mask
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.physics.operator import Description
from ddip_pl.physics.sensitivity import calibrated_maps

SMALLEST_CALIBRATION = 8  # of ESPIRiT
FURTHEST = 0.5**0.5  # from a sample in the calibrated centre, in steps of the grid: half a diagonal of its cells


def completed(description: Mapping[str, Any], data: np.ndarray, calibration: int) -> Description:
    """The description of an MRI operator with everything in it.

    Without a mask, what is not 0 in any coil is measured. Without maps, several coils are calibrated by ESPIRiT.

    Args:
        description: see `LinearOperator.describe`.
        data: k-space, `(slices, coils, ky, kx)` or `(slices, coils, samples)`.
        calibration: width of the centre of k-space that maps are calibrated from, at most.

    Raises:
        InputError: the mask or the trajectory does not fit, or there is no centre that is measured well enough.
    """
    if data.ndim == 4:
        slices, _, height, width = data.shape
        given = np.asarray(description["mask"]) if "mask" in description else (data != 0).any(1)
        mask = checked_mask(torch.from_numpy(given != 0), (slices, height, width))
        description = dict(description) | {"mask": mask.numpy()}
        calibrated = partial(calibrate, data, mask)
    else:
        calibrated = partial(calibrate_along_trajectory, data, description)
    maps = (
        {"coil_maps": calibrated(calibration).numpy()} if data.shape[1] > 1 and "coil_maps" not in description else {}
    )
    return dict(description) | maps


def calibrate(data: np.ndarray, mask: Tensor, most: int) -> Tensor:
    """Coil maps from the largest square centre that is fully measured in all slices.

    Args:
        data: `(slices, coils, ky, kx)`.
        mask: `(slices or 1, ky, kx)`, bool.
        most: width of that centre, at most.
    """
    everywhere, size = mask.all(0), 0
    for width in range(2, min(most, *everywhere.shape) + 1, 2):
        rows, columns = (slice(n // 2 - width // 2, n // 2 + width // 2) for n in everywhere.shape)
        if not everywhere[rows, columns].all():
            break
        size = width
    check_calibration(size, most)
    return calibrated_maps(torch.from_numpy(data.astype(np.complex64)) * mask[:, None], size)


def calibrate_along_trajectory(data: np.ndarray, description: Mapping[str, Any], most: int) -> Tensor:
    """Coil maps from the largest square centre in which no place of the grid is far from all samples.

    Args:
        data: `(slices, coils, samples)`.
        description: of the operator.
        most: width of that centre, at most.
    """
    from scipy.spatial import KDTree

    slices, coils, samples = data.shape
    one = NonCartesianMRI.from_description(description, (slices * coils, 1, samples))
    image_size = one.shape[1]
    tree, size = KDTree(np.asarray(description["trajectory"]) * description["pixel_size"] * image_size), 0
    for width in range(2, min(most, image_size) + 1, 2):
        steps = np.arange(width) - width // 2
        distances, _ = tree.query(np.stack(np.meshgrid(steps, steps), axis=-1))
        if distances.max() > FURTHEST:
            break
        size = width
    check_calibration(size, most)
    images = one.pseudo_inverse(rearrange(torch.from_numpy(data.astype(np.complex64)), "s c k -> (s c) 1 k"))
    kspace = fft(torch.complex(images[:, 0], images[:, 1]))
    return calibrated_maps(rearrange(kspace, "(s c) h w -> s c h w", c=coils), size)


def check_calibration(size: int, most: int) -> None:
    """Refuse a centre of k-space that is too small for ESPIRiT.

    Args:
        size: width of the centre that is fully measured.
        most: what the user allows.

    Raises:
        InputError: it is too small.
    """
    if size < SMALLEST_CALIBRATION:
        raise InputError(
            f"coil maps are calibrated from a fully measured centre of k-space, at least {SMALLEST_CALIBRATION} wide; "
            f"here it is {size} (data.calibration {most}); give coil_maps in the file"
        )
