"""The cache gives back what was put in, or has it computed again."""

from pathlib import Path

import numpy as np
import pytest

from ddip_pl.physics import ParallelBeamCT
from ddip_pl.physics.cache import cached

ARRAYS = {"values": np.arange(6.0).reshape(2, 3), "norm": np.array(0.5), "maps": np.ones((2, 2), np.complex64)}


def kept(folder: Path, made: list[int]) -> dict[str, np.ndarray]:
    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return ARRAYS

    found = cached(folder, "some", [1], make)
    assert found.keys() == ARRAYS.keys()
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in ARRAYS.items()
    )
    return found


def test_every_damaged_byte_is_found_or_means_nothing(tmp_path: Path) -> None:
    kept(tmp_path, [])
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    made: list[int] = []
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        kept(tmp_path, made)
    assert made


@pytest.mark.parametrize("name", ["indices", "indptr", "data", "norm"])
def test_a_matrix_whose_file_is_whole_but_changed(tmp_path: Path, name: str) -> None:
    """Indices out of range would read memory that is not the matrix's."""
    expected = ParallelBeamCT((1, 8, 8), 3, cache_dir=tmp_path)
    [file] = tmp_path.iterdir()
    with np.load(file) as arrays:
        np.savez(file, **{key: array + 10**6 if key == name else array for key, array in arrays.items()})
    again = ParallelBeamCT((1, 8, 8), 3, cache_dir=tmp_path)
    assert all(map(np.array_equal, map(np.asarray, again.buffers()), map(np.asarray, expected.buffers())))
