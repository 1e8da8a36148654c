"""YAML config files: where the shipped ones are, and how a file builds on others."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ddip_pl.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parents[1]
INSTALLED, CHECKOUT = PACKAGE / "configs", PACKAGE.parent / "configs"
SHIPPED = INSTALLED if INSTALLED.is_dir() else CHECKOUT
CONFIG_OPTIONS = ("--config", "--tasks", "--methods")
KINDS = ("task", "method", "prior", "sampler")  # whose configs are found by name


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with `configs/...` replaced by the shipped file, unless it exists locally.

    After an option that takes configs, the name of a task, method, prior or sampler is enough: `--config sv_ct`.
    """
    found, last = [], ""
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        last = option or (argument if argument.startswith("--") else last)
        if last in CONFIG_OPTIONS and not Path(value).exists():
            named = (f"configs/{kind}/{value}.yaml" for kind in KINDS)
            value = next((name for name in named if (SHIPPED / name.removeprefix("configs/")).is_file()), value)
        if value.startswith("configs/") and not Path(value).exists():
            shipped = SHIPPED / value.removeprefix("configs/")
            value = str(shipped) if shipped.is_file() else value
        found.append(option + equals + value)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config file.

    Raises:
        InputError: the file cannot be read, or has no named settings.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        shipped = {file.stem for kind in KINDS for file in (SHIPPED / kind).glob("*.yaml")}
        raise InputError(f"config {path}: no such file{did_you_mean(path.stem, shipped)}") from error
    except Exception as error:  # invalid dates and deep nesting raise more than YAML's own errors
        raise InputError(f"config {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path}: no named settings in it")
    return content


def with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """The files that a config file builds on, followed by the file itself.

    `config: ../sampler/slicewise.yaml` in a file (or a list of files) acts like `--config` before the file on the
    command line. Paths are relative to the file that names them; later settings win.

    Args:
        path: the config file.
        above: the files that build on it.

    Raises:
        InputError: one of the files cannot be read, or builds on itself.
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
    """Command-line arguments, with the files that each `--config FILE` builds on inserted before it."""
    found = []
    for number, argument in enumerate(arguments, 1):
        option, _, value = argument.partition("=")
        file = value or "".join(arguments[number : number + 1])
        if option == "--config" and (os.path.isfile(file) or re.fullmatch(r"[\w.-]+", file)):
            found += [f"--config={base}" for base in with_bases(Path(file))[:-1]]
        found.append(argument)
    return found
