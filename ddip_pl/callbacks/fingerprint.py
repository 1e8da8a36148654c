"""What the result of a run depends on: no run goes on from the checkpoint of another."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import ddip_pl
from ddip_pl.results.provenance import digest, digest_of
from ddip_pl.volumes.files import split

Fingerprint = dict[str, Any]

TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
IRRELEVANT = ("cache_dir", "num_workers")
TORCH = "PyTorch"
CONTENTS = "the contents of"  # begins the names of entries that are hashes


def fingerprint(command: str, settings: Mapping[str, Any]) -> Fingerprint:
    """Everything that the result of a command depends on, by name; files and folders count by their contents.

    Args:
        command: such as "test".
        settings: all settings of the command, as its parser dumps them.
    """
    trainer = {name: settings["trainer"].get(name) for name in TRAINER}
    return {
        "command": command,
        **dict(entries("model", settings["model"])),
        **dict(entries("data", settings["data"])),
        **dict(entries("trainer", trainer)),
        "seed_everything": settings["seed_everything"],
        "ddip-pl": ddip_pl.__version__,
        TORCH: str(torch.__version__),
    }


def entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The settings in a nested setting, by the names that they have on the command line."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield name, value["class_path"]
            value = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        for key, part in value.items():
            if key not in IRRELEVANT:
                yield from entries(f"{name}.{key}", part)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from entries(f"{name}[{number}]", part)
    elif re.search(r"\.(path|prior|start_from)(\[\d+\])?$", name) and value and split(value)[0].exists():
        place, choice = split(value)
        yield f"{CONTENTS} {name}", f"{digest(place)} {choice}".strip()
    else:
        yield name, value


def provenance(found: Fingerprint) -> dict[str, str]:
    """Hashes of all settings, and of the input: of each of its files or folders."""
    inputs = [str(value) for name, value in found.items() if name.startswith(f"{CONTENTS} data.path")]
    settings = {name: value for name, value in found.items() if name != TORCH}
    return {"settings": digest_of(settings)} | ({"input": ", ".join(inputs)} if inputs else {})


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two fingerprints, in words. The version of PyTorch does not count."""
    for name in dict.fromkeys([*saved, *now]):
        if name != TORCH and saved.get(name) != now.get(name):
            return f"{name} {saved.get(name)}, now it is {now.get(name)}"
    return None
