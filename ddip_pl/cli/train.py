"""`ddip-pl fit` and `ddip-pl validate`: train a prior on phantoms."""

import shlex
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import yaml
from lightning import Callback, seed_everything
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.loggers import CSVLogger

from ddip_pl.callbacks.checkpoint_file import CheckpointFile
from ddip_pl.callbacks.fingerprint import fingerprint
from ddip_pl.callbacks.interruption import SIGNALS, Interruption
from ddip_pl.callbacks.wandb import wandb_logger
from ddip_pl.cli.parser import Parser
from ddip_pl.cli.trainer import add_trainer, check_checkpoint, make_trainer
from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.errors import InputError
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.results.claim import claimed


def main(command: str, arguments: Sequence[str]) -> None:
    """Train a prior (`fit`) or compute its loss (`validate`).

    Raises:
        InputError: the settings cannot be used.
    """
    parser = Parser.of(command)
    parser.add_lightning_class_args(DiffusionPrior, "model")
    parser.add_lightning_class_args(EllipsesDataModule, "data")
    parser.link_arguments("model.network.image_size", "data.image_size")
    parser.link_arguments("model.network.in_channels", "data.channels")
    add_trainer(parser)
    settings = parser.read(arguments)
    check_checkpoint(settings.ckpt_path)
    seed_everything(settings.seed_everything, workers=True)
    made = parser.instantiate(settings)
    folder = Path(settings.trainer.default_root_dir or ".")
    if made.trainer.logger in (None, True):
        made.trainer.logger = CSVLogger(folder)
    config = yaml.safe_load(parser.dump(settings, skip_unset=False))
    callbacks: list[Callback] = []
    plugins: list[CheckpointIO] = []
    if command == "fit":
        path = folder / "interrupted.ckpt"
        again = shlex.join(["ddip-pl", command, *arguments, "--ckpt_path", str(path)])
        callbacks, plugins = [Interruption(path, again)], [CheckpointFile(fingerprint(command, config))]
    trainer = make_trainer(made.trainer, callbacks, plugins)
    if settings.wandb != "disabled":
        about = {"name": folder.resolve().name, "group": "prior", "job_type": command, "config": config}
        trainer.loggers = [*trainer.loggers, wandb_logger(settings.wandb, folder, identify=True, **about)]
    if command == "validate":  # any checkpoint
        trainer.validate(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path)
        return
    with claimed(folder) if trainer.is_global_zero else nullcontext():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            trainer.fit(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that draws ellipses has died, perhaps for lack of memory; lower data.num_workers "
                f"({made.data.num_workers})"
            ) from error
        finally:  # a dead worker can cut Lightning's own clean-up short
            for number, handler in handlers.items():
                signal.signal(number, handler)
