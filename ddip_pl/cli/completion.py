"""`ddip-pl completion SHELL`: a script that completes commands, options, and names of configs."""

import argparse
from collections.abc import Sequence

from ddip_pl.cli.help import pages
from ddip_pl.cli.usage import COMMANDS, PLAIN, parser
from ddip_pl.errors import InputError
from ddip_pl.methods.configs import KINDS, SHIPPED


def main(arguments: Sequence[str]) -> None:
    """Print the script.

    Raises:
        InputError: the package shtab is missing.
    """
    shell = parser("completion").parse_args(arguments).shell
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs a package that is missing; pip install 'ddip-pl[completion]'") from error
    print(shtab.complete(all_options(), shell))


def all_options() -> argparse.ArgumentParser:
    """A parser of all commands, with all options that `--help` explains."""
    made = argparse.ArgumentParser("ddip-pl")
    made.add_argument("--version", action="store_true")
    commands = made.add_subparsers()
    for command, purpose in COMMANDS.items():
        if command in PLAIN:
            commands.add_parser(command, parents=[parser(command)], help=purpose, add_help=False)
            continue
        added = commands.add_parser(command, help=purpose)
        words = " ".join(name for page in pages(command).values() for name in page).replace(",", "").split()
        for option in sorted({word for word in words if word.startswith("--")} - {"--config"}):
            added.add_argument(option)
        added.add_argument("--config", choices=sorted(configs()))
    return made


def configs() -> set[str]:
    """Names of the shipped configs that `--config` finds."""
    return {path.stem for kind in KINDS for path in (SHIPPED / kind).glob("*.yaml")}
