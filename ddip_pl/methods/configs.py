"""YAML files of settings: where the shipped ones are, and how one builds on others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from ddip_pl.errors import InputError

PACKAGE = Path(__file__).parents[1]
INSTALLED, CHECKOUT = PACKAGE / "configs", PACKAGE.parent / "configs"
SHIPPED = INSTALLED if INSTALLED.is_dir() else CHECKOUT


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line in which `configs/...` is the shipped file, unless there is one here."""
    found = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        if value.startswith("configs/") and not Path(value).exists():
            shipped = SHIPPED / value.removeprefix("configs/")
            value = str(shipped) if shipped.is_file() else value
        found.append(option + equals + value)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a file, on top of the ones in the files that its key `config` names.

    `config: ../sampler/slicewise.yaml`, or a list of files, is to a file what `--config` in front of it is on the
    command line. Paths are relative to the file that names them; what is read last wins.

    Raises:
        InputError: a file cannot be read, or has no settings by name.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path}: no settings by name in it")
    named = content.pop("config", [])
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list):
        raise InputError(f"config {path}: `config` is {named}; give a file or a list of files")
    layers = [*(read_config(path.parent / name) for name in named), content]
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(*layers)))
