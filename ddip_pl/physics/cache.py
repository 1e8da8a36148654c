"""A folder that keeps expensive results between runs."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

CHECKSUM = "sha256"

log = logging.getLogger(__name__)


def user_cache() -> Path:
    """`ddip-pl` in the user's cache folder."""
    return platformdirs.user_cache_path("ddip-pl", appauthor=False)


def checksum(arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of the name, type, shape and bytes of all arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))  # type: ignore[arg-type]
    return digest.digest()


def cached(folder: Path, name: str, key: Any, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, read from a file if they were computed before, otherwise computed by `make` and written.

    The cache never fails: a damaged file is computed again, and a folder that cannot be written to is ignored.

    Args:
        folder: of the file.
        name: first part of the file's name.
        key: everything the arrays depend on, as JSON.
        make: computes the arrays.
    """
    path = folder / f"{name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = dict(file)
        if kept.pop(CHECKSUM).tobytes() == checksum(kept):  # the zip's own checksums can be evaded
            return kept
        log.info("%s is computed again, %s is damaged", name, path)
    except FileNotFoundError:
        pass
    except Exception as error:
        log.info("%s is computed again, %s is unreadable: %s", name, path, error)
    arrays = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            complete = Path(temporary, path.name)
            np.savez(complete, **arrays, **{CHECKSUM: np.frombuffer(checksum(arrays), np.uint8)})  # type: ignore[arg-type]
            os.replace(complete, path)
    except OSError as error:
        log.info("%s is not kept for the next run: %s", name, error)
    return arrays
