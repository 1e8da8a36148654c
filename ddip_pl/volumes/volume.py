"""An image volume."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset

from ddip_pl.errors import InputError

LARGEST = 1e9  # mm


@dataclass(frozen=True)
class Volume:
    """An image volume.

    Attributes:
        data: `(x, y, z)` float32; axes point to the patient's right, front and head (RAS+).
        affine: `(4, 4)`, from indices to scanner coordinates in mm (RAS+).
        units: of the values, for example "HU"; empty if the file does not give them.
        header: of the first slice, if the volume is a DICOM series.
    """

    data: np.ndarray
    affine: np.ndarray
    units: str = ""
    header: Dataset | None = None

    @property
    def voxel_size(self) -> np.ndarray:
        """Edge lengths of a voxel along x, y, z, in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def as_volume(
    path: str | Path, data: np.ndarray, affine: np.ndarray, units: str = "", header: Dataset | None = None
) -> Volume:
    """Check the content of a file and turn it to RAS+ orientation.

    Args:
        path: of the file, for error messages.
        data: three axes in any order; more axes of length 1 may follow.
        affine: `(4, 4)`, from indices of `data` to scanner coordinates in mm.
        units: see `Volume`.
        header: see `Volume`.

    Raises:
        InputError: it is not a 3D volume of real numbers, contains NaN or infinity, is constant, or has an invalid
            affine.
    """
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.dtype.kind == "c":
        raise InputError(f"volume {path}: complex voxels, expected real numbers; save the magnitude first")
    if data.dtype.kind not in "biuf":
        raise InputError(f"volume {path}: voxels of type {data.dtype}, expected real numbers")
    if data.ndim != 3:
        raise InputError(f"volume {path}: {data.ndim} dimensions {data.shape}, expected 3; extract one volume first")
    with np.errstate(over="ignore"):  # overflow gives infinity, which is found below
        data = data.astype(np.float32)
    if bad := int(np.count_nonzero(~np.isfinite(data))):
        raise InputError(f"volume {path}: {bad} voxels are NaN or infinite; replace them first")
    if data.size == 0 or data.min() == data.max():
        raise InputError(f"volume {path}: all voxels have the same value; there is nothing to reconstruct")
    if not is_affine(affine):
        raise InputError(f"volume {path}: affine {np.asarray(affine).tolist()}, expected an invertible 4x4 matrix")
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))  # type: ignore[attr-defined]
    return Volume(np.asarray(image.dataobj), image.affine, units, header)


def is_affine(affine: np.ndarray) -> bool:
    """Whether an array is an invertible `(4, 4)` matrix from indices to coordinates in mm."""
    if np.shape(affine) != (4, 4) or not np.array_equal(affine[3], (0, 0, 0, 1)) or not (abs(affine) < LARGEST).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 1 / LARGEST).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)
