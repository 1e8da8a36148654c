"""Image files to volumes."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ddip_pl.errors import InputError


@dataclass(frozen=True)
class Volume:
    """An image volume.

    Attributes:
        data: `(x, y, z)` float32; axes point to the patient's right, front and top (RAS+).
        affine: `(4, 4)`, from indices to scanner coordinates in mm.
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def voxel_size(self) -> np.ndarray:
        """Edge lengths of a voxel along x, y, z, in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_nifti(path: str | Path) -> Volume:
    """Read a NIfTI file, turned to RAS+ orientation.

    Raises:
        InputError: the file is missing or unreadable, is no 3D volume, or holds NaN, infinity or one value only.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"volume {path}: no such file; give a NIfTI file (.nii or .nii.gz)")
    try:
        image = nib.as_closest_canonical(nib.load(path))  # type: ignore[arg-type]
        data = np.asarray(image.dataobj).real.astype(np.float32)  # type: ignore[attr-defined]
    except Exception as error:  # a damaged file can make the reader stumble over anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"volume {path}: not a readable NIfTI file ({reason})") from error
    if image.get_data_dtype().kind == "c":  # type: ignore[attr-defined]
        raise InputError(f"volume {path}: complex voxels, expected real ones; save the magnitude first")
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(f"volume {path}: {data.ndim} dimensions {data.shape}, expected 3; extract one volume first")
    if bad := int(np.count_nonzero(~np.isfinite(data))):
        raise InputError(f"volume {path}: {bad} voxels are NaN or infinite; replace them first")
    if data.size == 0 or data.min() == data.max():
        raise InputError(f"volume {path}: all voxels have the same value; there is nothing to reconstruct")
    return Volume(data, image.affine)  # type: ignore[attr-defined]
