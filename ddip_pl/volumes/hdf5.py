"""Opens HDF5 files that somebody else wrote."""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ddip_pl.errors import InputError
from ddip_pl.volumes.claims import check_claim

HEAPS = (b"GCOL\x01\0\0\0", b"HEAP\0\0\0\0")  # how a heap, which holds texts or names, starts; its size follows


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file in which everything lies in the file itself, and nothing is larger than the file can hold.

    Raises:
        InputError: a link or dataset refers to another file, or something claims more than the file can hold. The error
            message does not name the file.
    """
    check_heaps(path)
    with h5py.File(path) as file:
        file.visititems_links(check_link)
        size = path.stat().st_size
        file.visititems(lambda name, item: check_dataset(name, item, size) if isinstance(item, h5py.Dataset) else None)
        yield file


def check_heaps(path: Path) -> None:
    """Refuse a heap that claims to be larger than the file: the library would allocate it all."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start in HEAPS:
            place = -1
            while (place := content.find(start, place + 1)) >= 0:
                claimed = int.from_bytes(content[place + 8 : place + 16], "little")
                check_claim(claimed, len(content), "a heap")


def check_link(name: str, link: object) -> None:
    """Refuse a link to another file."""
    if isinstance(link, h5py.ExternalLink):
        raise InputError(f"'{name}' is a link to the file {link.filename}; copy the data into this file")


def check_dataset(name: str, dataset: h5py.Dataset, size: int) -> None:
    """Refuse a dataset with data in other files, or larger than a file of this size can hold."""
    if dataset.external or dataset.is_virtual:
        raise InputError(f"the data of '{name}' are in other files; copy them into this file")
    held = min(dataset.id.get_storage_size(), size)
    largest = max(math.prod(dataset.shape or ()), math.prod(dataset.chunks or ()))
    check_claim(largest * dataset.dtype.itemsize, held, f"'{name}'")
