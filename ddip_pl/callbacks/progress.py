"""Progress of a reconstruction in the terminal."""

from typing import Any

from lightning import LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.step import Step
from ddip_pl.scans.scan import Scan

NOT_SHOWN = ("seconds", "peak_memory_bytes", "loss_before")


class ReconstructionProgress(ReconstructionCallback):
    """Progress bars for volumes, for diffusion steps (or iterations) with their figures, and for gradient steps.

    The first appears only for several volumes, the last only if the method adapts weights. On several devices, the
    bars are of the first one.

    Args:
        label: shown before the volume's name.
    """

    def __init__(self, label: str = ""):
        self.label = label
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.volumes: TaskID | None = None
        self.gradient: TaskID | None = None

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Scan, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        volumes = (trainer.num_test_batches if trainer.testing else trainer.num_predict_batches)[dataloader_idx]
        if volumes > 1 and self.volumes is None:
            self.volumes = self.bars.add_task("volumes", total=volumes, figures="")
        self.bars.disable = not trainer.is_global_zero
        measurement, frame = batch
        slices = len(measurement)
        name = f"{self.label} {frame.name}, {slices} slice{'s'[: slices > 1]}".strip()
        self.steps, self.gradient = self.bars.add_task(name, total=None, figures=""), None

    def on_gradient_step_end(self, trainer: Trainer, done: int, steps: int) -> None:
        if self.gradient is None:
            self.gradient = self.bars.add_task("gradient steps", figures="")
            self.bars.start()  # not earlier, so that a run refused at its first step shows only the error
        self.bars.update(self.gradient, total=steps, completed=done)

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, step: Step) -> None:
        shown = {name: value for name, value in step.figures.items() if name not in NOT_SHOWN}
        figures = "  ".join(
            f"{name.removesuffix('_after').replace('_', ' ')} {value:.3g}" for name, value in shown.items()
        )
        self.bars.update(self.steps, total=steps, completed=done, figures=figures)
        self.bars.start()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        [task] = (task for task in self.bars.tasks if task.id == self.steps)
        self.bars.update(self.steps, total=task.completed)  # some methods stop early
        if self.gradient is not None:
            self.bars.remove_task(self.gradient)
        if self.volumes is not None:
            self.bars.advance(self.volumes)
        self.bars.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bars.stop()

    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]
