"""Files with what a scanner measured: our own HDF5 layout and others, told apart by what is in them."""

from pathlib import Path

import h5py

from ddip_pl.errors import InputError, reason
from ddip_pl.scans.fastmri import read_fastmri
from ddip_pl.scans.hdf5 import contents, read_own
from ddip_pl.scans.ismrmrd import is_ismrmrd, read_ismrmrd
from ddip_pl.scans.numpy import read_array
from ddip_pl.scans.recording import Recording
from ddip_pl.scans.scan import Scan


def read_scan(path: str | Path, slices: int | None = None, first: int | None = None, calibration: int = 24) -> Scan:
    """Read what a scanner measured: HDF5 of our own layout, of ISMRMRD or of fastMRI, or a NumPy array of k-space.

    Several coils without maps are calibrated by ESPIRiT. See docs/measurements.md.

    Args:
        path: the file.
        slices: number of slices, the central ones; by default all.
        first: index of the first slice, where not the central ones are wanted.
        calibration: width of the centre of k-space that coil maps are calibrated from, at most.

    Returns:
        The measurement of an image in the units of the scanner, of any intensity; `sigma_y` is nan where the file has
        none. And the frame of the image.

    Raises:
        InputError: the file is missing, damaged or of no known format, or something in it does not fit.
    """
    try:
        return read_recording(Path(path), slices, first).scan(calibration)
    except InputError as error:
        raise InputError(f"measurement {path}: {error}") from error


def read_recording(path: Path, slices: int | None, first: int | None) -> Recording:
    """What is in a file, see `read_scan`; messages do not name the file."""
    if not path.is_file():
        raise InputError("no such file; give HDF5 (.h5), or k-space as a NumPy array (.npy)")
    if path.name.lower().endswith((".nii", ".nii.gz", ".dcm")):
        raise InputError("an image, and no measurement; ddip-pl test or ddip-pl simulate take it")
    if path.suffix == ".npy":
        return read_array(path, slices, first)
    try:
        with h5py.File(path) as file:
            if "operator" in file.attrs:
                return read_own(file, slices, first)
            if "kspace" in file:
                return read_fastmri(file, slices, first)
            if is_ismrmrd(file):
                return read_ismrmrd(file, slices, first)
            raise InputError(
                "neither our attribute 'operator' nor fastMRI's dataset 'kspace' nor ISMRMRD's group with 'xml' and "
                f"'data'; it has {contents(file)}; see docs/measurements.md"
            )
    except (OSError, RuntimeError) as error:
        raise InputError(f"damaged, or no HDF5 file ({reason(error)})") from error
