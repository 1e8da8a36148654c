"""Opens HDF5 files that somebody else wrote."""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from ddip_pl.errors import InputError
from ddip_pl.volumes.claims import check_claim

# How the heaps that hold texts, lists and names start; their size follows.
GLOBAL_HEAP, LOCAL_HEAP = b"GCOL\x01\0\0\0", b"HEAP\0\0\0\0"


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file in which everything lies in the file itself, and nothing is larger than the file can hold.

    Raises:
        InputError: a link or dataset refers to another file, or something claims more than the file can hold. The error
            message does not name the file.
    """
    check_heaps(path)
    with h5py.File(path) as file:
        links: dict[str, object] = {}  # an error raised during the visits would be lost in the library
        file.visititems_links(lambda name, link: links.update({name: link}))
        for name, link in links.items():
            check_link(name, link)
        found: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        for name, dataset in found.items():
            check_dataset(name, dataset, path.stat().st_size)
            check_lengths(name, dataset, path)
        yield file


def check_heaps(path: Path) -> None:
    """Refuse heaps that the library would not check.

    It would allocate one that claims to be larger than the file, and never leave one with free space of size 0.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def number(place: int, size: int) -> int:
            return int.from_bytes(content[place : place + size], "little")

        for start in (GLOBAL_HEAP, LOCAL_HEAP):
            heap = -1
            while (heap := content.find(start, heap + 1)) >= 0:
                end = heap + number(heap + 8, 8)
                check_claim(end - heap, len(content), "a heap")
                entry = heap + 16
                while start == GLOBAL_HEAP and entry + 16 <= min(end, len(content)):
                    length = number(entry + 8, 8)
                    if number(entry, 2) == 0 and length == 0:
                        raise InputError("damaged: a heap has free space of size 0")
                    entry += length if number(entry, 2) == 0 else 16 + (length + 7) // 8 * 8


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


def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes that are numbers or texts; the library can crash on others, such as damaged lists."""
    plain = h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID, h5py.h5t.TypeEnumID
    return {name: item.attrs[name] for name in item.attrs if isinstance(item.attrs.get_id(name).get_type(), plain)}


def check_lengths(name: str, dataset: h5py.Dataset, path: Path) -> None:
    """Refuse texts and lists that claim to be longer than the file: the library would allocate them."""
    kind, places = dataset.id.get_type(), length_places(dataset.id.get_type())
    if not places or dataset.id.get_create_plist().get_nfilters():
        return
    parts: list[int] = []
    if dataset.chunks:
        dataset.id.chunk_iter(lambda chunk: parts.append(chunk.byte_offset))
    elif dataset.id.get_offset() is not None:
        parts.append(dataset.id.get_offset())
    count = math.prod(dataset.chunks or dataset.shape or ())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for part in parts:
            for place in (part + i * kind.get_size() + place for i in range(count) for place in places):
                check_claim(int.from_bytes(content[place : place + 4], "little"), len(content), f"an entry of '{name}'")


def length_places(kind: h5py.h5t.TypeID) -> list[int]:
    """Where in an element of this type the lengths of its texts and lists are, in bytes."""
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        members = range(kind.get_nmembers())
        return [kind.get_member_offset(i) + place for i in members for place in length_places(kind.get_member_type(i))]
    text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    return [0] if text or isinstance(kind, h5py.h5t.TypeVlenID) else []
