"""Saves the state of a running reconstruction."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.settings import NonNegative, checked


@checked
class DiffusionCheckpoint(ReconstructionCallback):
    """Save `last.ckpt` during a reconstruction; `--ckpt_path` resumes from it.

    Args:
        folder: for the checkpoint.
        every_seconds: shortest time between two saves.
    """

    def __init__(self, folder: Path, every_seconds: NonNegative = 60):
        self.path, self.every_seconds = folder / "last.ckpt", every_seconds
        self.saved = time.monotonic()

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, *_: Any) -> None:
        if done < steps and time.monotonic() - self.saved >= self.every_seconds:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print how to resume an interrupted run."""
        if isinstance(exception, KeyboardInterrupt):
            kept = f"to resume, add --ckpt_path {self.path} --output {self.path.parent} to the same command"
            print(f"interrupted; {kept if self.path.exists() else 'no checkpoint was saved yet'}", file=sys.stderr)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.path.unlink(missing_ok=True)

    on_predict_end = on_test_end
