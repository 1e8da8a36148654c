"""Priors on the Hugging Face Hub, found by the hub's own library in a cache of its layout, without a network."""

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import make_network
from huggingface_hub import ModelCard

from ddip_pl import cli
from ddip_pl.errors import InputError
from ddip_pl.prior import hub
from ddip_pl.prior.checkpoint import WEIGHTS, load_prior, save_prior

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    for module in (huggingface_hub.constants, huggingface_hub.file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.download.cache_clear()
    return tmp_path / "hub"


@pytest.fixture
def cached(cache: Path) -> dict[str, torch.Tensor]:
    """The weights of a prior of the hub that has been used before."""
    repository = cache / "models--some-lab--knees"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    network = make_network()
    save_prior(repository / "snapshots" / COMMIT / hub.FILE, network, card={}, dtype=torch.float32)
    return network.state_dict()


@pytest.mark.parametrize("name", ["some-lab/knees", "some-lab/knees@main", f"some-lab/knees@{COMMIT}"])
def test_a_prior_in_the_cache_needs_no_network(cached: dict[str, torch.Tensor], name: str) -> None:
    loaded = load_prior(name).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in cached.items())


@pytest.mark.parametrize("name", ["some-lab/knees", "some-lab/knees@v2"])
def test_a_prior_that_is_nowhere(cache: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^prior some-lab/knees.*neither the Hugging Face Hub nor its cache") as error:
        load_prior(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["weights/prior.safetensors", "a/b/c", "/a/b", "../b", "./b", "prior", "a/b.ckpt"])
def test_paths_of_files_are_no_names(name: str) -> None:
    assert not hub.is_on_hub(name)


def test_a_file_goes_before_the_hub(cached: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some-lab").mkdir()
    network = make_network(num_channels=64)
    save_prior(Path("some-lab/own.safetensors"), network, card={})
    Path("some-lab/own.safetensors").rename("some-lab/knees.safetensors")
    assert load_prior("some-lab/knees.safetensors").config.num_channels == 64
    assert load_prior("some-lab/knees").config.num_channels == 32


def test_what_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library reads the card, and the file is the prior."""
    uploaded = {}

    class Api:
        def __init__(self, **about: object) -> None:
            pass

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            uploaded["private"] = private

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            card = ModelCard.load(Path(folder_path, "README.md"))
            uploaded.update(card=card, files=sorted(path.name for path in Path(folder_path).iterdir()))
            uploaded["same"] = Path(folder_path, hub.FILE).read_bytes() == shipped.read_bytes()
            return f"https://hub/{repo_id}"

    shipped = WEIGHTS / "ellipses_128.safetensors"
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub.push_to_hub(shipped, "lab/ellipses", private=True) == "https://hub/lab/ellipses"
    assert uploaded["files"] == ["README.md", hub.FILE]
    assert (uploaded["same"], uploaded["private"]) == (True, True)
    assert uploaded["card"].data.library_name == "ddip-pl"
    assert "--model.prior lab/ellipses" in uploaded["card"].content
    assert "| image size | 128 |" in uploaded["card"].content
    assert "Not recorded" not in uploaded["card"].content


def test_only_a_prior_is_uploaded(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"prior .*a.safetensors"):
        hub.push_to_hub(tmp_path / "a.safetensors", "lab/a")


def test_a_run_with_a_prior_of_the_hub(
    cached: object, phantom_volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "ddip-pl", "test", "--config", "sv_ct", "--config", "dds", "--data.path", str(phantom_volume), "--data.window",
        "null", "--model.prior", "some-lab/knees", "--model.sampler.steps", "2", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    assert cli.main() == 0
    metrics = json.loads((tmp_path / "out" / "phantom" / "metrics.json").read_text())
    assert metrics["prior"] == "knees"
    assert len(metrics["provenance"]["prior"]) == 32
