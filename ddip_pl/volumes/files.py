"""Reads volumes from image files."""

import math
import re
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener

from ddip_pl.errors import InputError, reason
from ddip_pl.volumes.claims import check_claim
from ddip_pl.volumes.dicom import read_dicom
from ddip_pl.volumes.frame import folder_name
from ddip_pl.volumes.hdf5 import attributes, open_hdf5
from ddip_pl.volumes.volume import Volume, as_volume

HDF5 = (".h5", ".hdf5", ".hdf")
CHUNK = 2**20  # bytes

MEASURED = ", not a volume; use ddip-pl predict --config configs/task/measured.yaml"


def read_volume(path: str | Path) -> Volume:
    """Read a volume of any supported format, turned to RAS+ orientation.

    `scan.nii`, `scan.nii.gz`: NIfTI, see `read_nifti`. `folder`, `folder:SERIES`: a DICOM series, see `read_dicom`, or
    slices as `.npy` files, see `read_slices`. `scan.h5`, `scan.h5:DATASET`: HDF5, see `read_hdf5`.

    Raises:
        InputError: it is missing, damaged or not a complete 3D volume of finite numbers; see these functions.
    """
    try:
        return read_any(path)
    except InputError:
        raise
    except Exception as error:  # what a damaged header says can fail anywhere
        raise InputError(f"volume {path}: damaged, or not a volume ({reason(error)})") from error


def read_any(path: str | Path) -> Volume:
    """See `read_volume`; on a damaged file it may raise anything."""
    place, choice = split(path)
    if place.is_dir():
        return read_slices(place) if not choice and any(place.glob("*.npy")) else read_dicom(place, choice)
    if place.suffix.lower() in HDF5:
        return read_hdf5(place, choice)
    if place.suffix.lower() == ".npy" and place.is_file() and is_kspace(place):
        raise InputError(f"volume {path}: k-space{MEASURED}")
    if place.suffix.lower() in (".dcm", ".npy") and place.is_file():
        raise InputError(f"volume {path}: a single slice; give the folder with all slices of the volume")
    return read_nifti(path)


def is_kspace(path: Path) -> bool:
    """Whether a NumPy file has complex values."""
    try:
        return load_array(path).dtype.kind == "c"
    except InputError:
        return False


def load_array(path: Path) -> np.ndarray:
    """The array in a NumPy file, on disk until it is used. Error messages do not name the file.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    try:  # unlike `np.load`, this reads nothing but one array, and refuses one that the file is too short for
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"damaged, or not a NumPy array ({reason(error)})") from error


def split(path: str | Path) -> tuple[Path, str]:
    """`folder:SERIES` and `file:DATASET` as path and choice; the choice is empty if none is made."""
    place, _, choice = str(path).rpartition(":")
    return (Path(place), choice) if place and Path(place).exists() and not Path(path).exists() else (Path(path), "")


def volume_name(path: str | Path) -> str:
    """Name of a volume, and of the folder with its results: its file or folder and the choice made in it."""
    place, choice = split(path)
    name = place.resolve().name.removesuffix(".gz")
    stem = Path(name).stem if Path(name).suffix.lower() in (".nii", *HDF5) else name
    return folder_name("-".join([stem, *choice.replace("/", " ").split()]))


def read_nifti(path: str | Path) -> Volume:
    """Read a NIfTI file, turned to RAS+ orientation.

    Raises:
        InputError: the file is missing or damaged, or see `as_volume`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"volume {path}: no such file; give a NIfTI file, an HDF5 file or a folder with slices")
    try:
        with nib.imageglobals.ErrorLevel(30):  # type: ignore[attr-defined]  # or voxel sizes of 0 or less become 1
            image = nib.load(path)  # type: ignore[attr-defined]
        check_complete(image.dataobj, image.file_map["image"].filename)  # type: ignore
        data, affine = np.asarray(image.dataobj), image.affine  # type: ignore[attr-defined]
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"volume {path}: not a readable NIfTI file ({reason(error)})") from error
    return as_volume(path, data, affine)


def check_complete(voxels: ArrayProxy, file: str) -> None:
    """Check that a file has as many bytes as its header claims, and read a compressed one to the end.

    Only at the end does gzip compare its checksum; the voxels may end before.
    """
    if not isinstance(voxels, ArrayProxy):
        raise InputError("another format")
    claimed = voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize
    check_claim(claimed, Path(file).stat().st_size, "the header")
    if Path(file).suffix.lower() in ImageOpener.compress_ext_map:
        with ImageOpener(file) as stream:
            unread = claimed + CHUNK
            while unread > 0 and (part := stream.read(CHUNK)):
                unread -= len(part)
        if unread <= 0:
            raise InputError("damaged: it goes on after the last voxel")


def read_slices(folder: Path) -> Volume:
    """Read axial slices from `000.npy`, `001.npy`, ..., each `(rows, columns)`, as published for the AAPM challenge.

    These files have no geometry: voxels are assumed to be 1 mm wide. Slices have the patient's front in the first row
    and right side in the first column, as viewers show them; the first slice is the lowest.

    Raises:
        InputError: a file is unreadable or not a 2D array, slices differ in size, or a number is missing or duplicated;
            or see `as_volume`.
    """
    files: dict[int, Path] = {}
    for file in sorted(folder.glob("*.npy")):
        number = re.search(r"\d+$", file.stem)
        if number is None:
            raise InputError(f"volume {folder}: {file.name} has no number; expected slices 000.npy, 001.npy, ...")
        if (other := files.setdefault(int(number[0]), file)) is not file:
            raise InputError(f"volume {folder}: {other.name} and {file.name} have the same number")
    first, last = min(files), max(files)
    if gap := next((number for number in range(first, last) if number not in files), None):
        raise InputError(f"volume {folder}: slice {gap} is missing between {first} and {last}")
    images: list[np.ndarray] = []
    for _, file in sorted(files.items()):
        try:
            image = load_array(file)
        except InputError as error:
            raise InputError(f"volume {folder}: {file.name} is not a readable array; {error}") from error
        expected = images[0].shape if images else "(rows, columns)"
        if image.ndim != 2 or (images and image.shape != expected):
            raise InputError(f"volume {folder}: {file.name} has shape {image.shape}, expected {expected}")
        images.append(np.array(image))
    return as_volume(folder, np.stack(images), stack(np.ones(3)))


def read_hdf5(path: Path, dataset: str = "") -> Volume:
    """Read a 3D dataset of an HDF5 file, by default the only one.

    The attribute `affine`, `(4, 4)`, maps indices to scanner coordinates in mm (RAS+). Without it the axes are slices,
    rows and columns of axial images, oriented as in `read_slices`, and the attribute `voxel_size` gives the spacing
    along them in mm, by default 1. The attribute `units` names the units of the values.

    Raises:
        InputError: the file is missing or unreadable, the dataset is missing or ambiguous, or an attribute is invalid;
            or see `as_volume`.
    """
    if not path.is_file():
        raise InputError(f"volume {path}: no such file")
    try:
        with open_hdf5(path) as file:
            if not dataset and ("operator" in file.attrs or {"kspace", "ismrmrd_header"} <= set(file)):
                raise InputError(f"a measurement{MEASURED}")
            found: dict[str, h5py.Dataset] = {}
            file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
            volumes = [name for name, item in found.items() if item.ndim == 3 and item.dtype.kind in "iuf"]
            name = dataset.strip("/") or (volumes[0] if len(volumes) == 1 else "")
            if name not in found:
                available = ", ".join(f"{name} {item.shape} {item.dtype}" for name, item in found.items()) or "none"
                wanted = f"no dataset {name}" if name else f"{len(volumes)} 3D datasets of real numbers"
                raise InputError(f"{wanted}; choose one as {path}:NAME; available datasets: {available}")
            data, given = found[name][()], attributes(found[name])
    except InputError as error:
        raise InputError(f"volume {path}: {error}") from error
    except Exception as error:  # as above
        raise InputError(f"volume {path}: not a readable HDF5 file ({reason(error)})") from error
    try:
        voxel_size = np.broadcast_to(np.asarray(given.get("voxel_size", 1), dtype=float), 3)
        affine = np.asarray(given.get("affine", stack(voxel_size)), dtype=float)
    except ValueError as error:
        raise InputError(f"volume {path}: affine or voxel_size of {name} is invalid ({reason(error)})") from error
    if not (voxel_size > 0).all():
        raise InputError(f"volume {path}: voxel_size of {name} is {voxel_size.tolist()}; expected mm above 0")
    return as_volume(f"{path}:{name}", np.asarray(data), affine, str(given.get("units", "")))


def stack(voxel_size: np.ndarray) -> np.ndarray:
    """Affine `(4, 4)` from (slice, row, column) of axial images, as viewers show them, with this spacing in mm."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *(voxel_size * (1, -1, -1)), 1
    return affine
