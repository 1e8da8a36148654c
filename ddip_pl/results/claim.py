"""A folder that one run at a time writes to."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddip_pl.errors import InputError

LOCK = ".ddip-pl.lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for this process, and create it if it is missing; folders created and left empty are removed.

    The operating system ends the claim with the process, however that ends.

    Raises:
        InputError: another run has claimed the folder, or it cannot be written.
    """
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / LOCK
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    except Timeout as error:
        raise InputError(f"output folder {folder}: {holder(path)} writes to it; wait, or choose another") from error
    except OSError as error:
        lock.release()
        raise InputError(f"output folder {folder}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            for place in created:
                place.rmdir()


def holder(path: Path) -> str:
    """The run that holds a lock, in words."""
    with suppress(OSError, ValueError):
        process, host = path.read_text().split()
        return f"another run (process {process} on {host})"
    return "another run"
