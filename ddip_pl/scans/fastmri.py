"""Raw k-space as others keep it: fastMRI's HDF5, NumPy arrays."""

from pathlib import Path

import h5py
import numpy as np

from ddip_pl.data.simulated import span
from ddip_pl.errors import InputError, reason
from ddip_pl.scans.encoding import Encoding, parse_header
from ddip_pl.scans.kspace import KSpace

UNITS = "k-space"


def without_oversampling(
    source: str, name: str, data: np.ndarray, mask: np.ndarray, header: Encoding, affine: np.ndarray | None = None
) -> KSpace:
    """K-space of the field of view that is to be reconstructed.

    The readout is cropped in image space and transformed back. Along the lines that cannot be done before the
    reconstruction, if some of them are missing, nor along a readout that is not complete; there `margin` crops the
    image behind it.

    Args:
        source: for messages.
        name: of the scan.
        data: `(slices, coils, readout, lines)`, complex.
        mask: `(slices, readout, lines)`, bool.
        header: of the file.
        affine: of the image as encoded.
    """
    rows, columns = data.shape[2:]
    (top, bottom), (left, right) = header.beside(0, rows), header.beside(1, columns)
    pixel = header.encoded[0] / rows, header.encoded[1] / columns
    if affine is not None:
        affine = affine.copy()
        affine[:, 3] += affine[:, :2] @ [left, top]
    if (mask == mask[:, :1]).all():
        mask = mask[:, top : rows - bottom]
        image = inverse_transform(data, 2)[:, :, top : rows - bottom]
        data = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, 2), axis=2, norm="ortho"), 2) * mask[:, None]
        top = bottom = 0
    return KSpace(
        source=source, name=name, data=data.astype(np.complex64), pixel=pixel, mask=mask, units=UNITS,
        slice_spacing=header.spacing, margin=(top, bottom, left, right), affine=affine,
    )  # fmt: skip


def inverse_transform(kspace: np.ndarray, axis: int) -> np.ndarray:
    """Orthonormal inverse Fourier transform along an axis, whose origin is in the middle before and after."""
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axis), axis=axis, norm="ortho"), axis)


def read_fastmri(path: Path, file: h5py.File, slices: int | None, first: int | None) -> KSpace:
    """fastMRI (Zbontar et al. 2018): `kspace (slices, [coils,] readout, lines)`, `ismrmrd_header`, `mask`.

    The mask, of as many values as there are lines, is in test data only. Lines without any value have not been
    measured, either.

    Raises:
        InputError: something is missing or does not fit.
    """
    source, kspace = f"measurement {path}", file["kspace"]
    if not isinstance(kspace, h5py.Dataset) or kspace.ndim not in (3, 4) or kspace.dtype.kind != "c":
        given = f"{kspace.shape} of {kspace.dtype}" if isinstance(kspace, h5py.Dataset) else "a group"
        raise InputError(f"{source}: kspace is {given}; expected (slices, coils, ky, kx) or (slices, ky, kx), complex")
    if "ismrmrd_header" not in file:
        raise InputError(f"{source}: no dataset 'ismrmrd_header', which tells the field of view of fastMRI's kspace")
    header = parse_header(file["ismrmrd_header"][()], source)
    if header.trajectory != "cartesian" or header.matrix[2] != 1:
        raise InputError(
            f"{source}: a {header.trajectory} trajectory with {header.matrix[2]} partitions; fastMRI's files have "
            f"Cartesian 2D slices"
        )
    chosen = span(len(kspace), first, slices, source)
    data = kspace[chosen] if kspace.ndim == 4 else kspace[chosen][:, None]
    measured = (data != 0).any(1)
    mask = measured.any(1, keepdims=True) & measured.any(2, keepdims=True)
    if "mask" in file:
        lines = np.ravel(file["mask"]) != 0
        if lines.size != data.shape[-1]:
            raise InputError(
                f"{source}: mask of {lines.size} lines for kspace of shape {kspace.shape}; expected "
                f"{data.shape[-1]}, the length of the last axis"
            )
        mask &= lines
    return without_oversampling(source, path.stem, data, mask, header)


def read_array(path: Path, slices: int | None, first: int | None) -> KSpace:
    """NumPy array of k-space, `(coils, ky, kx)` for one slice or `(slices, coils, ky, kx)`; 0 where not measured.

    Raises:
        InputError: it is no such array.
    """
    source = f"measurement {path}"
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{source}: damaged, or no NumPy array ({reason(error)})") from error
    data = data[None] if data.ndim == 3 else data
    chosen = span(len(data), first, slices, source) if data.ndim else slice(None)
    return KSpace(source=source, name=path.stem, data=np.array(data[chosen]), pixel=(1.0, 1.0), units=UNITS)
