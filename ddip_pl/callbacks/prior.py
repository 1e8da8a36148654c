"""Output of `fit`: samples of the prior during training, and the prior itself in one file."""

import math
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib.image
import torch
from einops import rearrange
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.prior.module import VALIDATION_TIMESTEPS, DiffusionPrior
from ddip_pl.settings import PositiveInt, Range, checked


def tile(images: Tensor) -> Tensor:
    """Images `(batch, channels, height, width)` tiled into one `(rows, columns)`; complex ones as magnitude."""
    magnitude = images.norm(dim=1) if images.shape[1] > 1 else images[:, 0]
    columns = math.ceil(math.sqrt(len(magnitude)))
    blank = magnitude.new_zeros(-len(magnitude) % columns, *magnitude.shape[1:])
    return rearrange(torch.cat([magnitude, blank]), "(r c) h w -> (r h) (c w)", c=columns)


@checked
class SampleImages(Callback):
    """Draw unconditional samples before each validation, with the averaged weights and always from the same noise.

    Args:
        count: number of samples.
        every_n_epochs: epochs between two sets of samples.
    """

    def __init__(self, count: Annotated[int, Range(1, 1024)] = 9, every_n_epochs: PositiveInt = 1):
        self.count, self.every_n_epochs = count, every_n_epochs

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionPrior)
        if trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs or not trainer.is_global_zero:
            return
        config = pl_module.network.config
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.count, config.in_channels, config.image_size, config.image_size, generator=generator)
        image = tile(pl_module.sample(noise.to(pl_module.device))).clamp(0, 1).cpu().numpy()
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(folder / f"step-{trainer.global_step:07d}.png", image, cmap="gray", vmin=0, vmax=1)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [image], step=trainer.global_step - 1)  # the step of the validation


class ExportPrior(Callback):
    """Write the prior (averaged weights, if averaging is on) with its model card when training ends.

    Args:
        path: the `.safetensors` file to write; a relative path starts at the trainer's `default_root_dir`.
    """

    def __init__(self, path: str):
        self.path = path
        self.seconds = 0.0
        self.images = 0
        self.trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.images += len(batch) * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionPrior)
        if not self.trained:  # resumed after the last step, so that Lightning has skipped the end, where it averages
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_train_end(trainer, pl_module)
        metrics = trainer.callback_metrics
        data = getattr(trainer, "datamodule", None)
        card = {
            "data": {
                name: getattr(data, name, None) for name in ("image_size", "channels", "variant", "crop", "whole")
            },
            "training": {name: getattr(pl_module, name) for name in ("learning_rate", "weighting", "focus")},
            "steps": trainer.global_step,
            "images": self.images,
            "seconds": round(self.state_dict()["seconds"]),
            "device": f"{pl_module.device.type}, {torch.get_num_threads()} threads",
            "validation_loss": {
                t: float(metrics[k]) for t in VALIDATION_TIMESTEPS if (k := f"val/loss_t{t}") in metrics
            },
        }
        if trainer.is_global_zero:
            save_prior(Path(trainer.default_root_dir, self.path), pl_module.network, card)
