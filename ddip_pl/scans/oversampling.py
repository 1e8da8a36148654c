"""Scanners measure a larger field of view than is reconstructed; this crops it."""

import numpy as np

from ddip_pl.physics.fft import fft, ifft
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.scans.header import Encoding
from ddip_pl.scans.recording import Recording

UNITS = "k-space"
READOUT = (2,)


def without_oversampling(
    name: str,
    data: np.ndarray,
    mask: np.ndarray,
    header: Encoding,
    affine: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
) -> Recording:
    """K-space of the field of view to reconstruct.

    A fully sampled readout is cropped in image space and transformed back. Along an incomplete readout, and along the
    lines, this is impossible before the reconstruction: there the `margin` crops the image afterwards.

    Args:
        name: of the scan.
        data: `(slices, coils, readout, lines)`, complex.
        mask: `(slices, readout, lines)`, bool.
        header: of the file.
        affine: of the encoded image.
        calibration: k-space that coil maps are estimated from, with the shape of `data`, 0 where not measured.
    """
    rows, columns = data.shape[2:]
    (top, bottom), (left, right) = header.beside(0, rows), header.beside(1, columns)
    pixel = header.encoded[0] / rows, header.encoded[1] / columns
    if affine is not None:
        affine = affine.copy()
        affine[:, 3] += affine[:, :2] @ [left, top]
    if (mask == mask[:, :1]).all():
        kept = slice(top, rows - bottom)
        mask = mask[:, kept]
        data = cropped(data, kept) * mask[:, None]
        if calibration is not None:
            wide = np.arange(top - rows // 2, rows - bottom - rows // 2) * rows // data.shape[2] + rows // 2
            calibration = cropped(calibration, kept) * (calibration != 0).any(1, keepdims=True)[:, :, wide]
        top = bottom = 0
    field_of_view = data.shape[2] * pixel[0], columns * pixel[1]
    return Recording(
        name=name, operator=CartesianMRI, data=data.astype(np.complex64), units=UNITS, slice_spacing=header.spacing,
        description={"mask": mask, "field_of_view": field_of_view}, margin=(top, bottom, left, right), affine=affine,
        calibration=calibration,
    )  # fmt: skip


def cropped(kspace: np.ndarray, kept: slice) -> np.ndarray:
    """K-space `(slices, coils, readout, lines)` of these rows of the image."""
    return fft(ifft(kspace, READOUT)[:, :, kept], READOUT)
