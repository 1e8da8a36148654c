"""Files of measured data: our own HDF5 layout and others, recognised by their content or their name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ddip_pl.errors import InputError, reason
from ddip_pl.scans.bart import SUFFIXES, bart_volumes, read_bart
from ddip_pl.scans.counters import ANY, Counters
from ddip_pl.scans.counts import Detector
from ddip_pl.scans.dxchange import is_dxchange, read_dxchange
from ddip_pl.scans.fastmri import read_fastmri
from ddip_pl.scans.hdf5 import contents, read_own
from ddip_pl.scans.ismrmrd import is_ismrmrd, ismrmrd_volumes, read_ismrmrd
from ddip_pl.scans.numpy import read_array
from ddip_pl.scans.nxtomo import find_nxtomo, read_nxtomo
from ddip_pl.scans.recording import Recording
from ddip_pl.scans.scan import Scan
from ddip_pl.scans.tiff import read_tiff, tiff_files
from ddip_pl.scans.tigre import SUFFIX as MATLAB
from ddip_pl.scans.tigre import read_tigre
from ddip_pl.scans.twix import SUFFIX as TWIX
from ddip_pl.scans.twix import read_twix, twix_volumes
from ddip_pl.volumes.hdf5 import open_hdf5

ALL_BINS = Detector()


def read_scan(
    path: str | Path,
    slices: int | None = None,
    first: int | None = None,
    calibration: int = 24,
    volume: Counters = ANY,
    detector: Detector = ALL_BINS,
) -> Scan:
    """Read measured data, in any of the formats of docs/measurements.md.

    ESPIRiT estimates the coil maps if the file has several coils but no maps.

    Args:
        path: the file, or a folder of TIFF projections.
        slices: number of slices, by default all.
        first: index of the first slice; by default the slices are the central ones.
        calibration: largest width of the k-space centre that coil maps are estimated from.
        volume: which one, if the file has several; see `volumes`.
        detector: how the projections of a scan at a synchrotron or in a laboratory are read.

    Returns:
        The measurement and the frame of its image. Intensities are in the scanner's units, in no particular range;
        `sigma_y` is nan if the file does not give it.

    Raises:
        InputError: the file is missing, damaged, of unknown format or inconsistent.
    """
    with described(path):
        return read_recording(Path(path), slices, first, volume, detector).scan(calibration)


def volumes(path: str | Path, wanted: Counters = ANY) -> list[Counters]:
    """The volumes in a file that have the wanted counters.

    It is a single one without counters, unless the file is ISMRMRD, twix or BART.

    Raises:
        InputError: there are none; or the file is missing or damaged.
    """
    with described(path):
        if Path(path).suffix in SUFFIXES:
            return bart_volumes(Path(path), wanted)
        if Path(path).suffix == TWIX:
            return twix_volumes(Path(path), wanted)
        if Path(path).suffix != ".npy" and Path(path).is_file() and h5py.is_hdf5(path):
            with open_hdf5(Path(path)) as file:
                if is_ismrmrd(file):
                    return ismrmrd_volumes(file, wanted)
        return wanted.of([ANY])


@contextmanager
def described(path: str | Path) -> Iterator[None]:
    """Name the file in error messages, and report what a damaged file causes as bad input."""
    try:
        yield
    except InputError as error:
        raise InputError(f"measurement {path}: {error}") from error
    except (OSError, RuntimeError) as error:  # of the HDF5 library
        raise InputError(f"measurement {path}: damaged, or not an HDF5 file ({reason(error)})") from error
    except Exception as error:  # what a damaged file says about the scan can fail anywhere
        raise InputError(f"measurement {path}: damaged or inconsistent ({reason(error)})") from error


def read_recording(
    path: Path, slices: int | None, first: int | None, volume: Counters, detector: Detector = ALL_BINS
) -> Recording:
    """Read a file, see `read_scan`. Error messages do not name the file."""
    if path.is_dir() and tiff_files(path):
        return read_tiff(path, slices, first, detector)
    if not path.is_file():
        raise InputError(
            "no such file; give HDF5 (.h5, .nxs), k-space as Siemens's or BART's files (.dat, .cfl) or a NumPy array "
            "(.npy), TIGRE's projections (.mat), or a folder of TIFF projections"
        )
    if path.name.lower().endswith((".nii", ".nii.gz", ".dcm")):
        raise InputError("an image, not a measurement; use ddip-pl test or ddip-pl simulate")
    if path.suffix in (".npy", TWIX, MATLAB, *SUFFIXES):
        refuse(detector)
        if path.suffix == MATLAB:
            return read_tigre(path, slices, first)
        if path.suffix == TWIX:
            return read_twix(path, slices, first, volume)
        if path.suffix == ".npy":
            return read_array(path, slices, first)
        return read_bart(path, slices, first, volume)
    with open_hdf5(path) as file:
        if is_dxchange(file):
            return read_dxchange(file, slices, first, detector)
        if (entry := find_nxtomo(file)) is not None:
            return read_nxtomo(entry, slices, first, detector)
        refuse(detector)
        if "operator" in file.attrs:
            return read_own(file, slices, first)
        if "kspace" in file:
            return read_fastmri(file, slices, first)
        if is_ismrmrd(file):
            return read_ismrmrd(file, slices, first, volume)
        raise InputError(
            "unknown layout: no attribute 'operator' (ours), no dataset 'kspace' (fastMRI) or 'exchange/data' (Data "
            "Exchange), no group with 'xml' and 'data' (ISMRMRD), no definition NXtomo; the file has "
            f"{contents(file)}; see docs/measurements.md"
        )


def refuse(detector: Detector) -> None:
    """Raise `InputError` if settings are given that only counts of an X-ray detector need."""
    for name, usual in vars(ALL_BINS).items():
        if (value := getattr(detector, name)) != usual:
            raise InputError(f"data.{name} is {value:g}, but only counts of an X-ray detector need it; leave it out")
