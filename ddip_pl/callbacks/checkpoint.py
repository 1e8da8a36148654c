"""Saves the state of a running reconstruction."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from ddip_pl.callbacks.checkpoint_file import remove
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.settings import NonNegative, checked


@checked
class DiffusionCheckpoint(ReconstructionCallback):
    """Save a checkpoint during a reconstruction, and remove it when all volumes are done.

    Not on several devices: each reconstructs other volumes, and all would have to save at the same time.

    Args:
        path: of the checkpoint.
        every_seconds: shortest time between two saves.

    Raises:
        InputError: the time is negative.
    """

    def __init__(self, path: Path, every_seconds: NonNegative = 60):
        self.path, self.every_seconds = path, every_seconds
        self.saved = time.monotonic()

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, *_: Any) -> None:
        if trainer.world_size == 1 and done < steps and time.monotonic() - self.saved >= self.every_seconds:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        remove(self.path)

    on_predict_end = on_test_end
