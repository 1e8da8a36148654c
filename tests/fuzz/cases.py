"""A case: a valid file, damaged or edited at random, must be refused in one line or give data."""

import shutil
import warnings
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from fuzz.formats import FORMATS, Random, pick

from ddip_pl.errors import InputError

Outcome = Literal["refused", "unchanged", "changed"]
EDITED = 0.5  # share of the cases in which something inside the file is edited, instead of its bytes


@cache
def valid(name: str) -> tuple[TemporaryDirectory, Path, list[np.ndarray]]:
    """A valid file of a format, and what reading it gives."""
    folder = TemporaryDirectory(prefix="fuzz-")
    path = Path(folder.name, FORMATS[name].name)
    FORMATS[name].make(path)
    return folder, path, FORMATS[name].read(path)


def damaged(content: bytes, random: Random) -> bytes:
    """Some bytes or bits changed, taken out, put in or cut off."""
    data, start = bytearray(content), int(random.integers(len(content)))
    length = int(random.integers(1, 17))
    match random.integers(8):
        case 0 | 1 | 2:  # bits
            for place in random.integers(len(data), size=random.integers(1, 5)):
                data[place] ^= 1 << random.integers(8)
        case 3:  # a number, at the start of the file, where headers are
            size = int(pick(random, (1, 2, 4, 8)))
            start = int(random.integers(min(len(data), 2048))) // size * size
            data[start : start + size] = pick(random, (bytes(size), b"\xff" * size, b"\xff" * (size - 1) + b"\x7f"))
        case 4:
            del data[start:]
        case 5:
            data[start : start + length] = random.bytes(length)
        case 6:
            del data[start : start + length]
        case 7:
            data[start:start] = data[start : start + length]
    return bytes(data)


def run(name: str, seed: int, folder: Path) -> Outcome:
    """Run a case in an empty folder; raises whatever the reader raises but must not."""
    form, random = FORMATS[name], np.random.default_rng([seed, zlib.crc32(name.encode())])
    _, source, expected = valid(name)
    path = folder / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)
    edited = form.edit is not None and random.random() < EDITED
    if edited:
        form.edit(path, random)
    else:
        file = pick(random, sorted(path.iterdir())) if path.is_dir() else path
        file.write_bytes(damaged(file.read_bytes(), random))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = form.read(path)
    except InputError:
        return "refused"
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    assert same or edited or not form.checksum, "damaged, but accepted"
    assert all(np.isfinite(array).all() for array in found), "values that are not finite"
    return "unchanged" if same else "changed"
