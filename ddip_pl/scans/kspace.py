"""What k-space files may leave out: the mask and the coil maps."""

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

SMALLEST_CALIBRATION = 8  # width of the k-space centre that ESPIRiT needs


def completed(
    description: Mapping[str, Any], data: np.ndarray, calibration: int, centre: np.ndarray | None = None
) -> Description:
    """Add the mask and the coil maps that the description of an MRI operator lacks.

    The mask marks values that are non-zero in at least one coil. ESPIRiT estimates the maps of several coils.

    Args:
        description: see `LinearOperator.describe`.
        data: k-space, `(slices, coils, ky, kx)` or, along a trajectory, `(slices, coils, samples)`.
        calibration: largest width of the k-space centre that maps are estimated from.
        centre: Cartesian k-space to estimate them from, 0 where not measured; by default `data`.

    Raises:
        InputError: the mask or the trajectory does not match the data, or the measured k-space centre is too small.
    """
    found = dict(description)
    cartesian = data.ndim == 4
    if cartesian and "mask" not in found:
        found["mask"] = (data != 0).any(1)
    if data.shape[1] > 1 and "coil_maps" not in found:
        kspace = torch.from_numpy((data if centre is None else centre).astype(np.complex64))
        known = found if centre is None else found | {"mask": (centre != 0).any(1)}
        maps = calibrate(known, kspace, calibration) if cartesian else calibrate_gridded(found, kspace, calibration)
        found["coil_maps"] = maps.numpy()
    return found


def calibrate(description: Description, kspace: Tensor, most: int) -> Tensor:
    """Coil maps from the centre of Cartesian k-space that is measured in all slices, at most `most` wide."""
    slices, _, height, width = kspace.shape
    mask = checked_mask(torch.from_numpy(np.asarray(description["mask"]) != 0), (slices, height, width))
    size = measured_centre(mask, most)
    check_calibration(size, most)
    return calibrated_maps(kspace * mask[:, None], size)


def calibrate_gridded(description: Description, kspace: Tensor, most: int) -> Tensor:
    """Coil maps from the k-space centre that a trajectory covers, at most `most` wide, after gridding each coil."""
    slices, coils, samples = kspace.shape
    one = NonCartesianMRI.from_description(description, (slices * coils, 1, samples))
    size = covered_centre(one.trajectory.T, one.shape[1], most)
    check_calibration(size, most)
    images = one.pseudo_inverse(rearrange(kspace, "s c k -> (s c) 1 k"))
    centred = fft(torch.complex(images[:, 0], images[:, 1]))
    return calibrated_maps(rearrange(centred, "(s c) h w -> s c h w", c=coils), size)


def check_calibration(size: int, most: int) -> None:
    """Check that the k-space centre is large enough for ESPIRiT.

    Args:
        size: width of the centre that can be used.
        most: largest width that the user allows.

    Raises:
        InputError: it is too small.
    """
    if size < SMALLEST_CALIBRATION:
        raise InputError(
            f"coil maps are estimated from a fully measured k-space centre, at least {SMALLEST_CALIBRATION} wide; "
            f"here it is {size} (data.calibration {most}); give coil_maps in the file"
        )
