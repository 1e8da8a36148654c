"""What files of k-space may leave out: the mask, and the maps of several coils."""

from collections.abc import Mapping
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
from ddip_pl.physics.sampling import measured_centre
from ddip_pl.physics.sensitivity import calibrated_maps
from ddip_pl.physics.trajectory import covered_centre

SMALLEST_CALIBRATION = 8  # of ESPIRiT


def completed(description: Mapping[str, Any], data: np.ndarray, calibration: int) -> Description:
    """The description of an MRI operator with mask and coil maps in it.

    Without a mask, what is not 0 in any coil is measured. Without maps, several coils are calibrated by ESPIRiT.

    Args:
        description: see `LinearOperator.describe`.
        data: k-space, `(slices, coils, ky, kx)` or, along a trajectory, `(slices, coils, samples)`.
        calibration: width of the centre of k-space that maps are calibrated from, at most.

    Raises:
        InputError: mask or trajectory do not fit, or there is no centre that is measured well enough.
    """
    found = dict(description)
    cartesian = data.ndim == 4
    if cartesian and "mask" not in found:
        found["mask"] = (data != 0).any(1)
    if data.shape[1] > 1 and "coil_maps" not in found:
        kspace = torch.from_numpy(data.astype(np.complex64))
        maps = calibrate(found, kspace, calibration) if cartesian else calibrate_gridded(found, kspace, calibration)
        found["coil_maps"] = maps.numpy()
    return found


def calibrate(description: Description, kspace: Tensor, most: int) -> Tensor:
    """Coil maps from the centre of Cartesian k-space that is measured in all slices, at most so wide."""
    slices, _, height, width = kspace.shape
    mask = checked_mask(torch.from_numpy(np.asarray(description["mask"]) != 0), (slices, height, width))
    size = measured_centre(mask, most)
    check_calibration(size, most)
    return calibrated_maps(kspace * mask[:, None], size)


def calibrate_gridded(description: Description, kspace: Tensor, most: int) -> Tensor:
    """Coil maps from the centre of k-space that a trajectory covers, at most so wide, after gridding each coil."""
    slices, coils, samples = kspace.shape
    one = NonCartesianMRI.from_description(description, (slices * coils, 1, samples))
    size = covered_centre(one.trajectory.T, one.shape[1], most)
    check_calibration(size, most)
    images = one.pseudo_inverse(rearrange(kspace, "s c k -> (s c) 1 k"))
    centred = fft(torch.complex(images[:, 0], images[:, 1]))
    return calibrated_maps(rearrange(centred, "(s c) h w -> s c h w", c=coils), size)


def check_calibration(size: int, most: int) -> None:
    """Refuse a centre of k-space that is too small for ESPIRiT.

    Args:
        size: width of the measured centre.
        most: what the user allows.

    Raises:
        InputError: it is too small.
    """
    if size < SMALLEST_CALIBRATION:
        raise InputError(
            f"coil maps are calibrated from a fully measured centre of k-space, at least {SMALLEST_CALIBRATION} wide; "
            f"here it is {size} (data.calibration {most}); give coil_maps in the file"
        )
