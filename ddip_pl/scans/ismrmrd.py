"""ISMRMRD's HDF5 files (Inati et al. 2017), read with the package `ismrmrd`."""

from pathlib import Path

import h5py

from ddip_pl.errors import InputError, reason
from ddip_pl.scans.counters import ANY, Counters
from ddip_pl.scans.header import parse_header
from ddip_pl.scans.readouts import Readouts, read_image
from ddip_pl.scans.recording import Recording


def is_ismrmrd(file: h5py.File) -> bool:
    """Whether a file contains ISMRMRD scans."""
    return bool(_groups(file))


def ismrmrd_volumes(file: h5py.File, wanted: Counters) -> list[Counters]:
    """The volumes in a file that have the wanted counters.

    Raises:
        InputError: there are none; or see `read_ismrmrd`.
    """
    return _readouts(file).volumes(wanted)


def read_ismrmrd(file: h5py.File, slices: int | None, first: int | None, wanted: Counters = ANY) -> Recording:
    """Read one image, see `read_image`.

    Raises:
        InputError: see `read_image`; or the package is missing, the file is damaged, or it has several scans.
    """
    return read_image(Path(file.filename).stem, _readouts(file), slices, first, wanted)


def _groups(file: h5py.File) -> list[h5py.Group]:
    return [group for group in file.values() if isinstance(group, h5py.Group) and {"xml", "data"} <= set(group)]


def _readouts(file: h5py.File) -> Readouts:
    groups = _groups(file)
    if len(groups) > 1:
        names = ", ".join(group.name.strip("/") for group in groups)
        raise InputError(f"several scans ({names}); expected one, copy it to a separate file")
    try:
        from ismrmrd.file import Container
    except ImportError as error:
        raise InputError("ISMRMRD files need a package that is missing; pip install 'ddip-pl[ismrmrd]'") from error
    try:
        xml, lines = groups[0]["xml"][0], Container(groups[0]).acquisitions
        heads = groups[0]["data"].fields("head")[:]
        heads["idx"]  # raises an error if it is missing
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"damaged, or not ISMRMRD raw data ({reason(error)})") from error
    return Readouts(heads, lines, parse_header(xml))
