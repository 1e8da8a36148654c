"""Opens HDF5 files that somebody else wrote."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ddip_pl.errors import InputError
from ddip_pl.volumes.claims import check_claim


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file in which everything lies in the file itself, and every dataset is as large as it claims.

    Raises:
        InputError: a link or dataset refers to another file, or a dataset claims more than the file can hold. The error
            message does not name the file.
    """
    with h5py.File(path) as file:
        file.visititems_links(check_link)
        size = path.stat().st_size
        file.visititems(lambda name, item: check_dataset(name, item, size) if isinstance(item, h5py.Dataset) else None)
        yield file


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
