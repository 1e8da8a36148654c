"""Where an image belongs: its place in scanner coordinates, its units and its padding."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from einops import rearrange
from nibabel.nifti1 import Nifti1Image
from torch import Tensor

from ddip_pl import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

SCANNER = 1  # NIfTI's code for scanner coordinates
LONGEST_NAME = 100  # bytes; file systems allow 255, and names of files in the folder are made from it


def folder_name(name: str) -> str:
    """A name as it can be that of a folder: without path separators, not hidden, not empty and not too long."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "-", name).strip().lstrip(".")
    name = name.encode(errors="replace")[:LONGEST_NAME].decode(errors="ignore").strip()
    return "last-ckpt" if name == "last.ckpt" else name or "volume"  # a run keeps its checkpoint in `last.ckpt`


@dataclass(frozen=True, eq=False)
class Frame:
    """Turns images `(slices, channels, height, width)` in [0, 1] back into a volume in scanner coordinates.

    Attributes:
        name: of the volume, and of the folder with its results.
        affine: `(4, 4)`, from (column, row, slice) of the image without its margin to scanner coordinates in mm (RAS+).
        window: intensities that 0 and 1 stand for, in `units`.
        margin: rows above and below, columns left and right that are padding.
        units: of the intensities; empty if unknown.
        header: of the DICOM series that the volume was read from, if any; a derived series copies from it.
    """

    name: str = "volume"
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    window: tuple[float, float] = (0.0, 1.0)
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    units: str = ""
    header: Dataset | None = None

    def to(self, device: object) -> Frame:
        """Itself: there is nothing to move, but Lightning calls `to` on each part of a batch."""
        return self

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between columns, rows and slices, in mm."""
        column, row, slice_ = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(column), float(row), float(slice_)

    def unpad(self, images: Tensor) -> Tensor:
        """Images without their margin."""
        top, bottom, left, right = self.margin
        return images[..., top : images.shape[-2] - bottom, left : images.shape[-1] - right]

    def in_units(self, images: Tensor) -> np.ndarray:
        """Unpadded images as an array `(columns, rows, slices)` in `units`, complex ones as magnitude."""
        low, high = self.window
        return rearrange(magnitude(images).numpy(force=True), "s 1 h w -> w h s") * (high - low) + low

    def nifti(self, images: Tensor) -> Nifti1Image:
        """Unpadded images as a NIfTI image in `units`, in scanner coordinates; the description names the units."""
        image = nib.Nifti1Image(self.in_units(images), self.affine)  # type: ignore[attr-defined]
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, SCANNER)
        axes = self.affine[:3, :3] / self.spacing
        if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):  # others cannot be expressed as a quaternion
            image.set_qform(self.affine, SCANNER)
        image.header["descrip"] = ", ".join(filter(None, (f"ddip-pl {__version__}", self.units))).encode()[:79]
        return image


def magnitude(images: Tensor) -> Tensor:
    """Real images unchanged, complex ones (two channels) as magnitude; `(slices, 1, height, width)`."""
    return images if images.shape[1] == 1 else torch.linalg.vector_norm(images, dim=1, keepdim=True)
