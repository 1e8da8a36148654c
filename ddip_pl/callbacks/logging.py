"""What loggers are told of a reconstruction."""

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor

from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import magnitude
from ddip_pl.evaluation.pictures import tri_planar
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import Method

WandbMode = Literal["disabled", "offline", "online"]


def wandb_logger(mode: WandbMode, folder: Path, **about: Any) -> Logger:
    """Logger for Weights & Biases, whose files come to `<folder>/wandb`; the project is `WANDB_PROJECT` or ddip-pl.

    Args:
        mode: "offline" keeps the run in its files, for `wandb sync`; "online" needs an account.
        folder: of the run; made when the run starts.
        about: name, group, tags and the like, see `wandb.init`.

    Raises:
        InputError: nobody is logged in.
    """
    import wandb  # takes a second or two

    if mode == "online" and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            wandb.login()
        except wandb.Error as error:
            raise InputError("wandb: nobody is logged in; call `wandb login`, or give --wandb offline") from error
    project = os.environ.get("WANDB_PROJECT", "ddip-pl")
    return WandbLogger(project=project, save_dir=folder.absolute(), offline=mode == "offline", **about)


class RunLogging(ReconstructionCallback):
    """Tells the trainer's loggers of every diffusion step (or iteration) and every finished volume.

    Figures and settings go to all loggers; pictures, tables and files to Weights & Biases. Steps of a volume go on
    where those of the one before it ended. A run that goes on from a checkpoint has a log of its own, which begins with
    the steps that were done before.

    Args:
        writer: whose settings and files are logged; comes before this one among the trainer's callbacks.
        logger: joins those of the trainer at the first step: Lightning starts the ones it knows before it looks at the
            data, and a run that is refused would be logged.
        images_every: steps from one picture of the volume to the next; the last step has one as well.

    Raises:
        InputError: `images_every` is not positive.
    """

    def __init__(self, writer: VolumeWriter, logger: Logger | None = None, images_every: int = 10):
        if images_every < 1:
            raise InputError(f"images_every is {images_every}; give at least 1 step")
        self.writer, self.logger, self.images_every = writer, logger, images_every

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self.writer not in callbacks[: callbacks.index(self)]:
            raise InputError("RunLogging logs files that VolumeWriter writes; put the writer before it")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Measurement, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.measurement, self.volume, self.told, self.step = batch, batch_idx, 0, 0

    def on_diffusion_step_end(
        self, trainer: Trainer, step: int, steps: int, row: Mapping[str, float], images: Mapping[str, Tensor]
    ) -> None:
        if self.logger is not None and self.logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self.logger]
        if not trainer.loggers:
            return
        rows = [row]
        if self.told == 0:
            self.log_settings(trainer)
            if step > 1:
                rows = [*cast(ReconstructionTrainer, trainer).reverse_diffusion.trajectory[: step - 1], row]
        pictures = images if step % self.images_every == 0 or step == steps else {}
        for self.told, figures in enumerate(rows, step - len(rows) + 1):
            self.step = self.volume * steps + self.told
            named = {f"diffusion/{name}": value for name, value in figures.items()}
            for logger in trainer.loggers:
                media = self.pictures(pictures) if isinstance(logger, WandbLogger) and self.told == step else {}
                logger.log_metrics(named | media, self.step)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Measurement, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not trainer.loggers:
            return
        folder = self.writer.folder / batch.name
        metrics = json.loads((folder / "metrics.json").read_text())
        figures = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(figures | self.results(folder), self.step)
                self.log_artifacts(logger, folder, figures)
            else:
                logger.log_metrics(figures, self.step)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end

    def log_settings(self, trainer: Trainer) -> None:
        """The resolved settings of the run, and what runs are grouped by."""
        prior = cast(Method, trainer.lightning_module).prior
        names = {"task": self.writer.task, "method": self.writer.method, "volume": self.measurement.name}
        settings = (yaml.safe_load(self.writer.config) or {}) | names | {"prior": prior and Path(prior).name}
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)

    def pictures(self, images: Mapping[str, Tensor]) -> dict[str, Any]:
        """Three planes of each of the images `(slices, channels, height, width)`."""
        import wandb

        affine = self.measurement.affine
        volumes = {name: magnitude(self.measurement.unpad(x))[:, 0].cpu().numpy() for name, x in images.items()}
        return {f"images/{name}": wandb.Image(tri_planar(x, affine)) for name, x in volumes.items()}

    def results(self, folder: Path) -> dict[str, Any]:
        """The writer's figure and table of slices."""
        import wandb

        media: dict[str, Any] = {"planes": wandb.Image(str(folder / "figures" / "planes.png"))}
        if (folder / "slices.csv").exists():
            with (folder / "slices.csv").open() as file:
                names, *rows = csv.reader(file)
            columns: list[str | int] = [*names]
            media["slice_table"] = wandb.Table(columns, [[int(i), *map(float, values)] for i, *values in rows])
        return media

    def log_artifacts(self, logger: WandbLogger, folder: Path, figures: Mapping[str, float]) -> None:
        """The volume and the adapted weights; of the same task, method and volume, they are versions of each other."""
        import wandb

        for kind, path in (("reconstruction", folder / "reconstruction.nii.gz"), ("lora", folder / "lora")):
            if path.exists():
                name = f"{self.writer.task}-{self.writer.method}-{folder.name}-{kind}"
                artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "_", name), kind, metadata=dict(figures))
                add = artifact.add_dir if path.is_dir() else artifact.add_file
                add(str(path), policy="immutable")  # or a copy is kept in the user's home
                logger.experiment.log_artifact(artifact)
