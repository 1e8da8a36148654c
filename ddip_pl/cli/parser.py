"""The parser of all commands: settings from files and options, errors in one line."""

import argparse
import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from ddip_pl.cli.help import known_names
from ddip_pl.cli.usage import COMMANDS
from ddip_pl.errors import InputError, parser_reason, reason
from ddip_pl.methods.configs import expand, read_config
from ddip_pl.methods.shipped import class_path
from ddip_pl.settings import Seed, check

HINT = "; see ddip-pl COMMAND --help"
TRUSTED = ("ddip_pl", "lightning")  # packages whose classes and functions settings may name


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
            settings = self.parse_args(expand(load_plugins(arguments)))
        except OmegaConfBaseException as error:
            raise InputError(f"settings: {error}") from error
        check("seed_everything", settings.seed_everything, Seed)
        return settings

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        content = read_config(Path(path))
        content.pop("config", None)  # has been read already, see `expand`
        try:
            return self.parse_string(yaml.safe_dump(content), str(path), *args, **kwargs)
        except (TypeError, ValueError, OmegaConfBaseException) as error:
            raise InputError(f"config {path}: {error}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of a class inside; the parser of the command makes a line of it
            raise InputError(message)
        line = parser_reason(message.replace(HINT, ""), known_names())
        raise InputError(line if line.endswith("?") else line + HINT)


def load_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules that `--plugins` names and let settings name their classes; returns the other arguments.

    No other module is imported because a setting names it: a config from a stranger must not run code. Config files
    cannot give `--plugins`.

    Raises:
        InputError: a module cannot be imported.
    """
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    options.add_argument("--plugins", nargs="+", action="extend", default=[])
    try:
        given, others = options.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    for module in given.plugins:
        try:
            import_module(module)
        except Exception as error:  # whatever the module raises
            raise InputError(f"plugins: {module} cannot be imported ({reason(error)}); is it on PYTHONPATH?") from error
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *given.plugins],
        instantiate_subclass_spec_in_any=False,
    )
    return others
