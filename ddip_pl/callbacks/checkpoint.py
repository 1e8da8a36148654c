"""Saving the state of a reconstruction while it runs."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from ddip_pl.reconstruction.callback import ReconstructionCallback


class DiffusionCheckpoint(ReconstructionCallback):
    """Keep `last.ckpt` while a volume is being reconstructed; `--ckpt_path` continues from it.

    Args:
        folder: where to keep it.
        every_seconds: the least time between two saves.
    """

    def __init__(self, folder: Path, every_seconds: float = 60):
        self.path, self.every_seconds = folder / "last.ckpt", every_seconds
        self.saved = time.monotonic()

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, *_: Any) -> None:
        if done < steps and time.monotonic() - self.saved >= self.every_seconds:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell how an interrupted run can be continued."""
        if isinstance(exception, KeyboardInterrupt):
            kept = f"go on with the same command and --ckpt_path {self.path} --output {self.path.parent}"
            print(f"interrupted; {kept if self.path.exists() else 'there was no checkpoint yet'}", file=sys.stderr)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.path.unlink(missing_ok=True)

    on_predict_end = on_test_end
