"""YAML files of settings: where the shipped ones are, and how one builds on others."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ddip_pl.errors import InputError

PACKAGE = Path(__file__).parents[1]
INSTALLED, CHECKOUT = PACKAGE / "configs", PACKAGE.parent / "configs"
SHIPPED = INSTALLED if INSTALLED.is_dir() else CHECKOUT
CONFIG_OPTIONS = ("--config", "--tasks", "--methods")


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line in which `configs/...` is the shipped file, unless there is one here.

    After an option that takes configs the name of a task, a method or a prior alone is enough: `--config sv_ct`.
    """
    found, last = [], ""
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        last = option or (argument if argument.startswith("--") else last)
        if last in CONFIG_OPTIONS and not Path(value).exists():
            named = (f"configs/{kind}/{value}.yaml" for kind in ("task", "method", "prior"))
            value = next((name for name in named if (SHIPPED / name.removeprefix("configs/")).is_file()), value)
        if value.startswith("configs/") and not Path(value).exists():
            shipped = SHIPPED / value.removeprefix("configs/")
            value = str(shipped) if shipped.is_file() else value
        found.append(option + equals + value)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a file.

    Raises:
        InputError: it cannot be read, or has no settings by name.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path}: no settings by name in it")
    return content


def with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """A file, preceded by the files that it builds on.

    `config: ../sampler/slicewise.yaml` in a file, or a list of files, means the same as `--config` before it on the
    command line. Paths are relative to the file that names them. What is read last wins.

    Args:
        path: of the file.
        above: the files that build on it.

    Raises:
        InputError: one of them cannot be read, or builds on itself.
    """
    if path.resolve() in above:
        raise InputError(f"config {path}: it builds on itself by its key `config`; remove that")
    named = read_config(path).get("config", [])
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list):
        raise InputError(f"config {path}: `config` is {named}; give a file or a list of files")
    above = (*above, path.resolve())
    return [*(file for name in named for file in with_bases(path.parent / name, above)), path]


def expand(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line, with the files that a `--config FILE` builds on in front of it."""
    found = []
    for number, argument in enumerate(arguments, 1):
        option, _, value = argument.partition("=")
        file = value or "".join(arguments[number : number + 1])
        if option == "--config" and os.path.isfile(file):
            found += [f"--config={base}" for base in with_bases(Path(file))[:-1]]
        found.append(argument)
    return found
