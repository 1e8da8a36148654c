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

log = logging.getLogger(__name__)


def user_cache() -> Path:
    """`ddip-pl` in the user's cache folder."""
    return platformdirs.user_cache_path("ddip-pl", appauthor=False)


def cached(folder: Path, name: str, key: Any, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, read from a file if they were computed before, otherwise computed by `make` and written.

    The cache never fails: an unreadable file is computed again, and a folder that cannot be written to is ignored.

    Args:
        folder: of the file.
        name: first part of the file's name.
        key: everything the arrays depend on, as JSON.
        make: computes the arrays.
    """
    path = folder / f"{name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:  # the zip's checksums detect a damaged file
            return dict(file)
    except FileNotFoundError:
        pass
    except Exception as error:
        log.info("%s is computed again, %s is unreadable: %s", name, path, error)
    arrays = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            complete = Path(temporary, path.name)
            np.savez(complete, **arrays)  # type: ignore[arg-type]
            os.replace(complete, path)
    except OSError as error:
        log.info("%s is not kept for the next run: %s", name, error)
    return arrays
