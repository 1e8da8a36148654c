"""Where a result comes from: the program, the settings and the files, by version and hash."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ddip_pl

CHECKOUT = Path(ddip_pl.__file__).parents[1]


def program() -> dict[str, str]:
    """The version of ddip-pl and, if it runs from a git checkout, its commit."""
    here = commit()
    return {"version": ddip_pl.__version__} | ({"commit": here} if here else {})


@cache
def commit() -> str | None:
    """The commit that runs, with `-dirty` if files were changed since; None unless it runs from a git checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def digest(path: Path) -> str:
    """The first half of the SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            total.update(f"{file.relative_to(path)} {digest(file)}\n".encode())
    return total.hexdigest()[:32]


def digest_of(settings: Mapping[str, Any]) -> str:
    """The first half of the SHA-256 of settings, as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


def lines(provenance: Mapping[str, str]) -> list[str]:
    """A provenance as short texts."""
    return [f"{'ddip-pl' if name == 'version' else name} {value}" for name, value in provenance.items()]
