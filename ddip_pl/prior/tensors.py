"""Tensors on disk: `.safetensors` files with a checksum in their metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ddip_pl.errors import InputError, reason

CHECKSUM = "sha256"


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the other metadata and of the name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(sorted(item for item in metadata.items() if item[0] != CHECKSUM)).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with a checksum; other programs read it as any `.safetensors` file."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(stored, dict(metadata) | {CHECKSUM: checksum(stored, metadata)})
    path.write_bytes(content)  # `save_file` makes files that only their owner can read


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. Error messages do not name the file.

    Raises:
        InputError: the file cannot be read, or its checksum is wrong; files of other programs have none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        damaged = CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata)
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"truncated or not a .safetensors file ({reason(error)})") from error
    if damaged:
        raise InputError("damaged, its checksum is wrong; copy it again from where it came from")
    return tensors, metadata


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: one is.
    """
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"{len(bad)} weights have NaN or infinite values (first: {bad[0]})")
