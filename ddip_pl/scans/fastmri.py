"""fastMRI's HDF5 files (Zbontar et al. 2018)."""

from pathlib import Path

import h5py
import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.scans.header import parse_header
from ddip_pl.scans.oversampling import without_oversampling
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.slices import span


def read_fastmri(file: h5py.File, slices: int | None, first: int | None) -> Recording:
    """Read `kspace (slices, [coils,] readout, lines)`, `ismrmrd_header` and `mask`.

    Only the test data contain a mask, with one value per line. Lines and readout positions that are 0 everywhere count
    as not measured too.

    Raises:
        InputError: a dataset is missing or inconsistent.
    """
    kspace = file["kspace"]
    if not isinstance(kspace, h5py.Dataset) or kspace.ndim not in (3, 4) or kspace.dtype.kind != "c":
        given = f"{kspace.shape} of {kspace.dtype}" if isinstance(kspace, h5py.Dataset) else "a group"
        raise InputError(f"kspace is {given}; expected (slices, coils, ky, kx) or (slices, ky, kx), complex")
    text = file.get("ismrmrd_header")
    if not isinstance(text, h5py.Dataset) or h5py.check_string_dtype(text.dtype) is None:
        raise InputError("no dataset 'ismrmrd_header' of text; fastMRI files give the field of view there")
    header = parse_header(text[()])
    if header.trajectory != "cartesian" or header.matrix[2] != 1:
        raise InputError(
            f"a {header.trajectory} trajectory with {header.matrix[2]} partitions; fastMRI files contain Cartesian 2D "
            "slices"
        )
    chosen = span(len(kspace), first, slices, "the file")
    data = kspace[chosen] if kspace.ndim == 4 else kspace[chosen][:, None]
    measured = (data != 0).any(1)
    mask = measured.any(1, keepdims=True) & measured.any(2, keepdims=True)
    if "mask" in file:
        lines = np.ravel(file["mask"]) != 0
        if lines.size != data.shape[-1]:
            raise InputError(
                f"mask of {lines.size} lines for kspace of shape {kspace.shape}; expected {data.shape[-1]}, the length "
                "of the last axis"
            )
        mask &= lines
    return without_oversampling(Path(file.filename).stem, data, mask, header)
