"""The parser of all commands: settings from files and options, errors in one line."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from ddip_pl.cli.usage import COMMANDS
from ddip_pl.errors import InputError, parser_reason
from ddip_pl.methods.configs import expand, read_config
from ddip_pl.methods.shipped import class_path

HINT = "; see ddip-pl COMMAND --help"


class Parser(LightningArgumentParser):
    """Lightning's parser, with configs that build on other configs and errors in one line."""

    @classmethod
    def of(cls, command: str) -> Self:
        """The parser of a command, with the options common to all."""
        parser = cls(prog=f"ddip-pl {command}", description=COMMANDS[command], parser_mode="omegaconf")
        parser.add_argument("--config", action="config", help="File with settings.")
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of all random numbers.")
        return parser

    def add_choice(self, base: type, key: str, usual: type) -> None:
        """Add an option for any subclass of `base` and its settings; `usual` if no class is named."""
        settings = ", ".join(f"--{key}.{name}" for name in inspect.signature(usual).parameters)
        self.add_subclass_arguments(
            base, key, fail_untyped=False, default=class_path(usual),
            help=f"Class, by default {usual.__name__}, and its settings. --{key}.help NAME explains the settings of "
            f"class NAME; {usual.__name__} has {settings}.",
        )  # fmt: skip

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Settings from options and config files.

        Raises:
            InputError: they cannot be used.
        """
        try:
            return self.parse_args(expand(arguments))
        except OmegaConfBaseException as error:
            raise InputError(f"settings: {error}") from error

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        content = read_config(Path(path))
        content.pop("config", None)  # has been read already, see `expand`
        try:
            return self.parse_string(yaml.safe_dump(content), str(path), *args, **kwargs)
        except (TypeError, ValueError, OmegaConfBaseException) as error:
            raise InputError(f"config {path}: {error}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(parser_reason(message.replace(HINT, "")) + HINT)
