"""Raw k-space as others keep it: fastMRI's HDF5, ISMRMRD, NumPy arrays."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np

from ddip_pl.data.acquisition import KSpace
from ddip_pl.data.volumes import span
from ddip_pl.errors import InputError

UNITS = "k-space"
NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


@dataclass(frozen=True)
class Encoding:
    """What an ISMRMRD header says of k-space, along x (readout), y (lines) and z.

    Attributes:
        matrix: samples.
        encoded: field of view that these belong to, in mm.
        wanted: field of view that is to be reconstructed, in mm.
        trajectory: "cartesian", or another.
        centre: line of the zero frequency among those measured; by default in the middle.
    """

    matrix: tuple[int, int, int]
    encoded: tuple[float, float, float]
    wanted: tuple[float, float, float]
    trajectory: str
    centre: int


def parse_header(xml: str | bytes, source: str) -> Encoding:
    """Read an ISMRMRD header.

    Raises:
        InputError: it is no such header, or k-space is no stack of Cartesian 2D slices.
    """
    try:
        [encoding] = ElementTree.fromstring(xml).findall(f"{NAMESPACE}encoding")

        def value(*names: str) -> str | None:
            return encoding.findtext("/".join(NAMESPACE + name for name in names))

        def lengths(space: str, name: str) -> tuple[float, float, float]:
            x, y, z = (float(value(space, name, axis) or "nan") for axis in "xyz")
            return x, y, z

        x, y, z = lengths("encodedSpace", "matrixSize")
        header = Encoding(
            matrix=(int(x), int(y), int(z)),
            encoded=lengths("encodedSpace", "fieldOfView_mm"),
            wanted=lengths("reconSpace", "fieldOfView_mm"),
            trajectory=value("trajectory") or "cartesian",
            centre=int(value("encodingLimits", "kspace_encoding_step_1", "center") or y // 2),
        )
    except (ElementTree.ParseError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: no ISMRMRD header with encodedSpace and reconSpace ({reason})") from error
    numbers = np.array([*header.matrix, *header.encoded, *header.wanted])
    if not ((numbers > 0) & (numbers < np.inf)).all():
        raise InputError(f"{source}: the header has matrix sizes and fields of view {numbers}; expected them positive")
    if header.trajectory != "cartesian" or header.matrix[2] != 1:
        raise InputError(
            f"{source}: a {header.trajectory} trajectory with {header.matrix[2]} partitions; only Cartesian 2D slices "
            f"can be read"
        )
    return header


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
    rows, columns = (
        min(n, max(1, round(n * wanted / encoded)))
        for n, encoded, wanted in zip(data.shape[2:], header.encoded, header.wanted, strict=False)
    )
    top, left = (n // 2 - kept // 2 for n, kept in zip(data.shape[2:], (rows, columns), strict=True))
    bottom, right = data.shape[2] - rows - top, data.shape[3] - columns - left
    pixel = header.encoded[0] / data.shape[2], header.encoded[1] / data.shape[3]
    if affine is not None:
        affine = affine.copy()
        affine[:, 3] += affine[:, :2] @ [left, top]
    if (mask == mask[:, :1]).all():
        mask = mask[:, :rows]
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(data, 2), axis=2, norm="ortho"), 2)[:, :, top : top + rows]
        data = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, 2), axis=2, norm="ortho"), 2) * mask[:, None]
        top = bottom = 0
    return KSpace(
        source=source, name=name, data=data.astype(np.complex64), pixel=pixel, mask=mask, units=UNITS,
        slice_spacing=header.wanted[2], margin=(top, bottom, left, right), affine=affine,
    )  # fmt: skip


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
        raise InputError(f"{source}: damaged, or no NumPy array ({' '.join(str(error).split())})") from error
    data = data[None] if data.ndim == 3 else data
    chosen = span(len(data), first, slices, source) if data.ndim else slice(None)
    return KSpace(source=source, name=path.stem, data=np.array(data[chosen]), pixel=(1.0, 1.0), units=UNITS)
