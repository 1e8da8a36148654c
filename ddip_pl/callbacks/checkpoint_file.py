"""Checkpoints on disk: complete, of this run only, and no reason to stop when they cannot be written."""

import io
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from ddip_pl.callbacks.fingerprint import TORCH, Fingerprint, difference
from ddip_pl.errors import InputError, reason

FINGERPRINT = "fingerprint"

log = logging.getLogger(__name__)


class CheckpointFile(TorchCheckpointIO):
    """Reads and writes the checkpoints of one run, as a plugin of Lightning's Trainer.

    A checkpoint appears under its name only once all of it is on disk; until then the previous one stays. If it cannot
    be written, the run goes on with a warning, and no older checkpoint is removed until one has been written again.

    Args:
        fingerprint: of the run.
    """

    def __init__(self, fingerprint: Fingerprint):
        self.fingerprint = fingerprint
        self.failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        checkpoint = {**checkpoint, FINGERPRINT: self.fingerprint}
        if "://" in str(path):  # a bucket, which has no unfinished files
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write(checkpoint, Path(path))
            self.failed = False
        except OSError as error:
            self.failed = True
            log.warning("checkpoint %s was not saved (%s); the run goes on and tries again later", path, reason(error))

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            InputError: it is of a run with other settings.
        """
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        check_origin(path, checkpoint.get(FINGERPRINT), self.fingerprint)
        return checkpoint

    def remove_checkpoint(self, path: _PATH) -> None:
        if not self.failed:
            super().remove_checkpoint(path)


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, then move it there."""
    content = io.BytesIO()
    torch.save(dict(checkpoint), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_file(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_file(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return path.with_name(f".{path.name}.unfinished")


def remove(path: Path) -> None:
    """Remove a checkpoint, and what a killed run may have left of a new one."""
    for file in path, unfinished_file(path):
        file.unlink(missing_ok=True)


def check_origin(path: _PATH, saved: Fingerprint | None, now: Fingerprint) -> None:
    """Check that a checkpoint is of this run; another version of PyTorch only gives a warning.

    Raises:
        InputError: it is of a run with other settings.
    """
    advice = "give the settings of the checkpoint, or leave out --ckpt_path"
    if saved is None:
        raise InputError(f"ckpt_path {path}: the checkpoint does not say what it is of; leave out --ckpt_path")
    if other := difference(saved, now):
        raise InputError(f"ckpt_path {path}: the checkpoint was saved with {other}; {advice}")
    if saved.get(TORCH) != now.get(TORCH):
        log.warning(
            "the checkpoint was saved with PyTorch %s, now it is %s; the result may differ in the last digits",
            saved.get(TORCH), now.get(TORCH),
        )  # fmt: skip


def origin(path: Path) -> Fingerprint | None:
    """The fingerprint in a checkpoint; None if there is no readable checkpoint, or it has none."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True).get(FINGERPRINT)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        return None
