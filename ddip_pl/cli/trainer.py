"""Lightning's Trainer on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ddip_pl.callbacks.wandb import WandbMode
from ddip_pl.cli.parser import Parser
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import read_pickle


def add_trainer(parser: Parser, **defaults: Any) -> None:
    """Add the options of Lightning's Trainer, with some defaults replaced, `--ckpt_path` and `--wandb`."""
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="Resume from this checkpoint.")
    help = "Log to Weights & Biases; offline needs no account."
    parser.add_argument("--wandb", type=WandbMode, default="disabled", help=help)


def check_checkpoint(path: str | None) -> None:
    """Check that a given path has a complete checkpoint.

    Raises:
        InputError: it has not.
    """
    if path is None:
        return
    if not Path(path).is_file():
        raise InputError(f"ckpt_path {path}: no such file")
    try:
        content = read_pickle(Path(path))
    except InputError as error:
        raise InputError(f"ckpt_path {path}: not a complete checkpoint ({error})") from error
    if not isinstance(content, dict) or "loops" not in content:
        raise InputError(f"ckpt_path {path}: not a checkpoint of a run; give its last.ckpt")


def make_trainer(settings: Namespace, callbacks: Sequence[Callback], plugins: Sequence[CheckpointIO]) -> Trainer:
    """A Trainer with these callbacks and plugins after the user's own.

    Raises:
        InputError: its settings are invalid.
    """
    callbacks, plugins = [*as_list(settings.callbacks), *callbacks], [*as_list(settings.plugins), *plugins]
    try:
        return Trainer(**settings.as_dict() | {"callbacks": callbacks, "plugins": plugins})
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"trainer: {error}") from error


def as_list(value: Any) -> list[Any]:
    """Nothing, one or several values as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]
