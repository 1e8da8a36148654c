"""Progress of a reconstruction in the terminal."""

from typing import Any

from lightning import LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.callback import ReconstructionCallback


class ReconstructionProgress(ReconstructionCallback):
    """A bar with the step or iteration, its figures (timestep, data residual, loss, ...) and the time that is left.

    Args:
        label: put before the volume's name.
    """

    def __init__(self, label: str = ""):
        self.label = label

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Measurement, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.task = self.progress.add_task(
            f"{self.label} {batch.name}, {len(batch)} slices".strip(), total=None, figures=""
        )
        self.progress.start()

    def on_diffusion_step_end(self, trainer: Trainer, step: int, steps: int, row: dict[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.3g}" for name, value in row.items() if name != "seconds")
        self.progress.update(self.task, total=steps, completed=step, figures=figures)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()

    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]
