"""Logs reconstructions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor

from ddip_pl.callbacks.wandb import RunLogger
from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.errors import InputError
from ddip_pl.evaluation.pictures import grey, tri_planar
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.step import Step
from ddip_pl.results.folder import LORA, PLANES, RECONSTRUCTION
from ddip_pl.results.provenance import program
from ddip_pl.results.result import Result
from ddip_pl.scans.scan import Scan
from ddip_pl.settings import PositiveInt, checked


@checked
class RunLogging(ReconstructionCallback):
    """Log every diffusion step (or iteration) and every finished volume to the trainer's loggers.

    Figures and settings go to all loggers; pictures, tables and files to Weights & Biases. Step numbers continue from
    one volume to the next. A resumed run starts a new log, which begins with the steps done before.

    Args:
        writer: its settings and files are logged; it must come before this callback in the trainer's list.
        logger: added to the trainer's loggers at the first step. Lightning would start it before reading the data, and
            so log runs that are refused.
        images_every: steps between two pictures of the volume; the last step always has one.

    Raises:
        InputError: `images_every` is not positive.
    """

    def __init__(self, writer: VolumeWriter, logger: Logger | None = None, images_every: PositiveInt = 10):
        self.writer, self.logger, self.images_every = writer, logger, images_every

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self.writer not in callbacks[: callbacks.index(self)]:
            raise InputError("RunLogging needs the files of VolumeWriter; put the writer before it")
        self.step = 0

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Scan, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.scan, self.logged, self.first = batch, 0, self.step

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, step: Step) -> None:
        if self.logger is not None and self.logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self.logger]
        if not trainer.loggers:
            return
        method = cast(Method, trainer.lightning_module)
        if self.logged == 0:
            self.log_settings(trainer, method)
        pictures = step.images if done % self.images_every == 0 or done == steps else {}
        for number, figures in enumerate(method.loop.trajectory[self.logged : done], self.logged + 1):
            self.step = self.first + number
            named = {f"diffusion/{name}": value for name, value in figures.items()}
            for logger in trainer.loggers:
                media = self.pictures(pictures) if isinstance(logger, WandbLogger) and number == done else {}
                logger.log_metrics(named | media, self.step)
        self.logged = done

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Scan, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not trainer.loggers:
            return
        folder = self.writer.written[-1]
        figures = {name: value for name, value in outputs.facts().items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(figures | result_media(outputs, folder), self.step)
                if isinstance(logger, RunLogger):
                    logger.attempt(self.log_artifacts, logger, folder, figures)
                else:
                    self.log_artifacts(logger, folder, figures)
            else:
                logger.log_metrics(figures, self.step)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end

    def log_settings(self, trainer: Trainer, method: Method) -> None:
        """Log the resolved settings of the run, and the names that runs are grouped by."""
        _, frame = self.scan
        names = {"task": self.writer.task, "method": self.writer.method, "volume": frame.name}
        about = {"prior": method.prior and Path(method.prior).name, "provenance": program() | self.writer.origin}
        for logger in trainer.loggers:
            logger.log_hyperparams((yaml.safe_load(self.writer.config) or {}) | names | about)

    def pictures(self, images: Mapping[str, Tensor]) -> dict[str, Any]:
        """A picture of three planes for each volume `(slices, channels, height, width)`."""
        import wandb

        measurement, frame = self.scan
        volumes = {name: grey(frame.unpad(measurement.operator.visible(x))) for name, x in images.items()}
        return {f"images/{name}": wandb.Image(tri_planar(x, frame.affine)) for name, x in volumes.items()}

    def log_artifacts(self, logger: WandbLogger, folder: Path, figures: Mapping[str, float]) -> None:
        """Log the volume and the LoRA weights; runs of the same task, method and volume become versions of them."""
        import wandb

        for kind, path in (("reconstruction", folder / RECONSTRUCTION), ("lora", folder / LORA)):
            if path.exists():
                name = f"{self.writer.task}-{self.writer.method}-{folder.name}-{kind}"
                artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "_", name), kind, metadata=dict(figures))
                add = artifact.add_dir if path.is_dir() else artifact.add_file
                add(str(path), policy="immutable")  # otherwise W&B keeps a copy in the user's home
                logger.experiment.log_artifact(artifact)


def result_media(result: Result, folder: Path) -> dict[str, Any]:
    """The picture from a volume's folder, and a table of its slices."""
    import wandb

    picture = folder / PLANES  # missing if it could not be written
    media: dict[str, Any] = {"planes": wandb.Image(str(picture))} if picture.is_file() else {}
    if rows := result.slice_metrics():
        columns: list[str | int] = [*rows[0]]
        media["slice_table"] = wandb.Table(columns, [[*row.values()] for row in rows])
    return media
