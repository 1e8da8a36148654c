"""Ends a run that gets a signal, or a training that fails, with a checkpoint."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ddip_pl.callbacks.checkpoint_file import remove
from ddip_pl.reconstruction.callback import ReconstructionCallback

# Ctrl-C; the end of a job or container; what clusters send in advance if asked to (not on Windows).
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interruption(ReconstructionCallback):
    """On SIGINT (Ctrl-C), SIGTERM or SIGUSR1, save a checkpoint after the current step and exit with 128 + the signal.

    A second signal ends the run at once. A training that ends with an exception saves one too. A training on several
    devices is left to Lightning, which saves nothing.

    Args:
        path: of the checkpoint.
        command: goes on from it.

    Attributes:
        received: the signal, if there was one.
    """

    received: signal.Signals | None = None

    def __init__(self, path: Path, command: str):
        self.path, self.command = path, command

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the signal handlers; Lightning, which has just set its own, restores the original ones at the end."""
        self.received = None
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.receive)

    on_predict_start = on_train_start = on_test_start

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; end the process on the second."""
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = signal.Signals(number)
        print(f"{self.received.name}: the run ends after this step; another signal ends it at once", file=sys.stderr)

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, *_: Any) -> None:
        if done < steps:  # otherwise the volume is finished
            self.end(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != trainer.max_steps:
            self.end(trainer)

    def end(self, trainer: Trainer) -> None:
        """Save a checkpoint and exit, if there was a signal."""
        if self.received is None:
            return
        if resumable(trainer):
            trainer.save_checkpoint(self.path)
        raise SystemExit(128 + self.received)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        remove(self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print what goes on from the checkpoint, after the last state of the progress bar."""
        if self.received is not None:
            kept = resumable(trainer) and self.path.exists()
            advice = f"to go on: {self.command}" if kept else "there is no checkpoint to go on from"
            print(f"ended by {self.received.name}; {advice}", file=sys.stderr)
        elif isinstance(exception, Exception) and trainer.training and trainer.world_size == 1 and trainer.global_step:
            trainer.save_checkpoint(self.path)
            if self.path.exists():
                step = trainer.global_step
                print(f"the training has failed after step {step}; to go on: {self.command}", file=sys.stderr)
        if isinstance(exception, SIGTERMException):  # Lightning's, with exit code 0
            exception.code = 128 + signal.SIGTERM


def resumable(trainer: Trainer) -> bool:
    """Whether what runs can go on from a checkpoint; a training can."""
    return getattr(trainer.lightning_module, "resumable", True)
