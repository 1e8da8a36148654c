"""Scanners measure a larger field of view than is reconstructed; this crops it."""

import numpy as np

from ddip_pl.physics.fft import fft, ifft
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.scans.header import Encoding
from ddip_pl.scans.recording import Recording

UNITS = "k-space"
READOUT = (2,)


def without_oversampling(
    name: str, data: np.ndarray, mask: np.ndarray, header: Encoding, affine: np.ndarray | None = None
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
    """
    rows, columns = data.shape[2:]
    (top, bottom), (left, right) = header.beside(0, rows), header.beside(1, columns)
    pixel = header.encoded[0] / rows, header.encoded[1] / columns
    if affine is not None:
        affine = affine.copy()
        affine[:, 3] += affine[:, :2] @ [left, top]
    if (mask == mask[:, :1]).all():
        mask = mask[:, top : rows - bottom]
        data = fft(ifft(data, READOUT)[:, :, top : rows - bottom], READOUT) * mask[:, None]
        top = bottom = 0
    field_of_view = data.shape[2] * pixel[0], columns * pixel[1]
    return Recording(
        name=name, operator=CartesianMRI, data=data.astype(np.complex64), units=UNITS, slice_spacing=header.spacing,
        description={"mask": mask, "field_of_view": field_of_view}, margin=(top, bottom, left, right), affine=affine,
    )  # fmt: skip
