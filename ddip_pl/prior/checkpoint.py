"""Priors on disk: our own format, Lightning checkpoints, and the published formats of ADM weights.

No code in a file is ever run: `.safetensors` holds none, and pickles are read with `weights_only=True`.
"""

import json
import os
import reprlib
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddip_pl.errors import InputError, reason
from ddip_pl.prior.hub import download, is_on_hub
from ddip_pl.prior.schedule import BETA_END, BETA_START, STEPS
from ddip_pl.prior.tensors import check_finite, read_tensors, write_tensors
from ddip_pl.prior.unet import UNet, UNetConfig

WEIGHTS = Path(str(files("ddip_pl"))) / "weights"  # of the shipped priors
FORMAT = "ddip-pl-prior-1"
SCHEDULE = {"steps": STEPS, "beta_start": BETA_START, "beta_end": BETA_END}
# Settings of guided-diffusion's scripts that do not change the network.
IRRELEVANT = {"use_checkpoint", "use_fp16", "num_heads_upsample", "class_cond", "diffusion_steps", "noise_schedule"}
# The largest settings of a network; anything above is a mistake or an attack, and would take all memory.
LARGEST = {
    "image_size": 2048, "in_channels": 64, "out_channels": 128, "num_channels": 1024, "channel_mult": 64,
    "num_res_blocks": 16, "attention_resolutions": 2048, "num_heads": 1024, "num_head_channels": 1024,
}  # fmt: skip
MOST_LEVELS = 12


def parse_config(settings: Mapping[str, Any]) -> UNetConfig:
    """Network settings from a mapping; lists may be strings such as "1,1,2,4", as in guided-diffusion.

    Raises:
        InputError: a setting is unknown, missing or out of range, the network is class-conditional, or its noise
            schedule differs.
    """
    if settings.get("class_cond"):
        raise InputError("the prior is class-conditional; only unconditional networks can be used")
    schedule = settings.get("noise_schedule", "linear"), settings.get("diffusion_steps", STEPS)
    if schedule != ("linear", STEPS):
        name, steps = (
            reprlib.repr(part).strip("'") for part in schedule
        )  # from a pickle, lists can be nested beyond all measure
        raise InputError(f"the noise schedule is {name} with {steps} steps, expected linear with {STEPS}")
    known = {field.name for field in fields(UNetConfig)}
    if unknown := set(settings) - known - IRRELEVANT:
        raise InputError(f"unknown network settings {sorted(unknown)}; known are {sorted(known)}")
    values = {name: settings[name] for name in known & set(settings)}
    for name in ("channel_mult", "attention_resolutions"):
        if name in values:
            value = values[name]
            values[name] = tuple(int(v) for v in value.split(",")) if isinstance(value, str) else tuple(value)
    if "image_size" not in values:
        raise InputError("the network settings lack image_size")
    for name in LARGEST.keys() & values.keys():
        each = [values[name]] if isinstance(values[name], int) else values[name] or ()
        if len(each) > MOST_LEVELS or not all(isinstance(v, int) and abs(v) <= LARGEST[name] for v in each):
            raise InputError(
                f"{name} is {reprlib.repr(values[name])}; expected whole numbers of at most {LARGEST[name]}"
            )
    return UNetConfig(**values)


def describe(network: UNet) -> dict[str, str]:
    """A prior file's metadata: format, network settings and noise schedule, as JSON."""
    return {"format": FORMAT, "config": json.dumps(asdict(network.config)), "schedule": json.dumps(SCHEDULE)}


def save_prior(path: str | Path, network: UNet, card: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write weights, network settings, noise schedule and a model card into one `.safetensors` file, atomically."""
    path = Path(path)
    weights = {name: value.to(dtype) for name, value in network.state_dict().items()}
    temporary = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(temporary, weights, describe(network) | {"card": json.dumps(card)})
    os.replace(temporary, path)


def prior_file(path: str | Path) -> Path:
    """The file of a prior that is given by its path, the name of a shipped one, or `org/name` on the Hugging Face Hub.

    Raises:
        InputError: the hub does not have it.
    """
    if Path(path).exists():
        return Path(path)
    shipped = WEIGHTS / f"{path}.safetensors"
    if shipped.is_file():
        return shipped
    return download(str(path)) if is_on_hub(str(path)) else Path(path)


def load_prior(path: str | Path, config: Mapping[str, Any] | None = None) -> UNet:
    """Read a prior as a float32 network `network(x, t) -> eps` in evaluation mode.

    The global random state stays as it is: a volume is the same whether or not its prior was loaded before.

    Args:
        path: our `.safetensors`, a Lightning `.ckpt` from `fit`, a guided-diffusion state dict, a dict with `config`
            and `state_dict`, or `{decay, num_updates, shadow_params}` with the averaged weights in registration order;
            or the name of a shipped prior, such as `ellipses_128_published`; or `org/name` of one on the Hugging Face
            Hub, with `@revision` if it should not be the latest.
        config: network settings, for files without them.

    Raises:
        InputError: the file is missing, damaged, not a prior, or does not fit the settings; or a weight is NaN or
            infinite.
    """
    try:
        path = prior_file(path)
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
            raise InputError(f"no such file; give a .safetensors, .ckpt or .pt file, or one of {names}")
        return _load(path, config)
    except InputError as error:
        raise InputError(f"prior {path}: {error}") from error
    except Exception as error:  # weights of another program can be of any kind
        raise InputError(f"prior {path}: damaged, or not a prior ({reason(error)})") from error


def _load(path: Path, config: Mapping[str, Any] | None) -> UNet:
    contents, carried = _read_safetensors(path) if path.suffix == ".safetensors" else _read_weights(path)
    settings = config if config is not None else carried
    if settings is None:
        raise InputError("the file has no network settings; give them as config")
    try:
        with torch.device("meta"):  # takes no memory and draws no random numbers, whatever the settings claim
            network = UNet(parse_config(json.loads(settings) if isinstance(settings, str) else settings))
    except Exception as error:  # a wrong setting can fail anywhere in the network
        raise InputError(f"unusable network settings ({_one_line(error)})") from error
    weights = _name_parameters(network, contents) if isinstance(contents, list) else contents
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(weights)) or [
        name for name, value in own.items() if getattr(weights[name], "shape", None) != value.shape
    ]
    if wrong:
        raise InputError(f"{len(wrong)} weights do not fit the network's settings (first: {wrong[0]})")
    network.to_empty(device="cpu").load_state_dict(dict(weights))
    check_finite(network.state_dict())
    return network.eval()


def read_pickle(path: Path) -> Any:
    """What a file written by `torch.save` holds. Error messages do not name the file.

    PyTorch does not check the checksums in its own files.

    Raises:
        InputError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its entries claim to be larger than the file")
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"truncated or not a file of plain weights ({_one_line(error)})") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"not a ddip-pl prior (format {metadata.get('format')!r})")
    _check_schedule(metadata.get("schedule"))
    return tensors, metadata.get("config")


def _read_weights(path: Path) -> tuple[dict[str, Tensor] | list[Tensor], Mapping[str, Any] | str | None]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"holds a {type(content).__name__}, expected a dict of weights")
    if isinstance(content.get("shadow_params"), list):
        return content["shadow_params"], None
    weights = content.get("state_dict", content)
    header = content.get("prior", content)  # added to Lightning checkpoints by DiffusionPrior
    if not (isinstance(weights, dict) and isinstance(header, dict)):
        raise InputError("not a checkpoint of a prior")
    if "schedule" in header:
        _check_schedule(header["schedule"])
    return {str(name).removeprefix("network."): value for name, value in weights.items()}, header.get("config")


def _check_schedule(schedule: object) -> None:
    if schedule != json.dumps(SCHEDULE):
        raise InputError(f"noise schedule {reprlib.repr(schedule)}, expected {SCHEDULE}")


def _name_parameters(network: UNet, parameters: list[Tensor]) -> dict[str, Tensor]:
    names = [name for name, _ in network.named_parameters()]
    if len(names) != len(parameters):
        raise InputError(f"{len(parameters)} parameters, these settings need {len(names)}")
    return dict(zip(names, parameters, strict=True))


def _one_line(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0]
