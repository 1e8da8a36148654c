"""A folder that keeps what is costly to compute from one run to the next."""

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
    """Arrays by name, as `make` makes them, read from a file if they were made before.

    A cache is never worth a failure: a file that cannot be read is made again, a folder that cannot be written is none.

    Args:
        folder: where the file lies.
        name: first part of its name.
        key: what the arrays depend on, JSON.
        make: makes them.
    """
    path = folder / f"{name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:  # the zip's checksums find a damaged file
            return dict(file)
    except FileNotFoundError:
        pass
    except Exception as error:
        log.info("%s is made again, %s is unreadable: %s", name, path, error)
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
