"""Priors on the Hugging Face Hub: one repository for each, with the file `prior.safetensors` and a model card."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ddip_pl.errors import InputError, reason
from ddip_pl.prior.tensors import read_tensors

FILE = "prior.safetensors"
NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w.-]+))?")  # org/name, org/name@revision
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

CARD = """\
---
library_name: ddip-pl
pipeline_tag: image-to-image
tags: [diffusion, inverse-problems, computed-tomography, mri, image-reconstruction]
---

# {name}

A diffusion prior for ddip-pl, which reconstructs CT and MRI volumes from few measurements.

    ddip-pl test --config sv_ct --config dds --model.prior {repository} --data.path VOLUME.nii.gz

## Network

{network}

## Training

{training}
"""


def is_on_hub(name: str) -> bool:
    """Whether a name has the form `org/name` or `org/name@revision` of a repository, and is not that of a file."""
    return NAME.fullmatch(name) is not None and not name.endswith(FILES)


@cache
def download(name: str) -> Path:
    """The file of a prior on the hub, from the local cache if it is there and up to date, or if there is no network.

    Args:
        name: `org/name` or `org/name@revision`.

    Raises:
        InputError: neither the hub nor the cache has it.
    """
    from huggingface_hub import hf_hub_download  # a slow import

    parts = NAME.fullmatch(name)
    assert parts is not None, "see is_on_hub"
    repository, revision = parts.groups()
    try:
        return Path(hf_hub_download(repository, FILE, revision=revision, library_name="ddip-pl"))
    except Exception as error:  # of the network, the hub or the name
        raise InputError(
            f"no such file, and neither the Hugging Face Hub nor its cache on this machine has {FILE} in {repository} "
            f"({reason(error)[:120]})"
        ) from error


def save_pretrained(prior: str | Path, folder: str | Path, repository: str = "ORG/NAME") -> None:
    """Write a prior and its model card into a folder, as they belong on the hub.

    Args:
        prior: file of ddip-pl's own format.
        folder: created if need be.
        repository: that the card names, `org/name`.

    Raises:
        InputError: the prior cannot be read, or the folder cannot be written.
    """
    prior, folder = Path(prior), Path(folder)
    try:
        _, metadata = read_tensors(prior)
        if not metadata.keys() >= {"config", "schedule"}:
            raise InputError("not a ddip-pl prior")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(model_card(metadata, prior.stem, repository), encoding="utf-8")
        shutil.copyfile(prior, folder / FILE)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    except InputError as error:
        raise InputError(f"prior {prior}: {error}") from error


def push_to_hub(prior: str | Path, repository: str, private: bool = False) -> str:
    """Upload a prior and its model card; needs `hf auth login`.

    Args:
        prior: file of ddip-pl's own format.
        repository: `org/name`, created if need be.
        private: whether a new repository is visible to others.

    Returns:
        The address of the upload.

    Raises:
        InputError: the prior cannot be read, or the hub does not accept it.
    """
    from huggingface_hub import HfApi  # a slow import

    with TemporaryDirectory() as folder:
        save_pretrained(prior, folder, repository)
        try:
            api = HfApi(library_name="ddip-pl")
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))
        except Exception as error:  # of the network, the hub or the name
            raise InputError(f"{repository}: cannot be uploaded ({reason(error)[:120]})") from error


def model_card(metadata: dict[str, str], name: str, repository: str) -> str:
    """A model card, from what the file of a prior says about its network and training."""

    def table(text: str | None) -> str:
        values = json.loads(text or "{}")
        rows = "".join(f"| {key.replace('_', ' ')} | {value} |\n" for key, value in values.items())
        return f"| | |\n|---|---|\n{rows}" if rows else "Not recorded.\n"

    parts = {"network": table(metadata.get("config")), "training": table(metadata.get("card"))}
    return CARD.format(name=name, repository=repository, **parts)
