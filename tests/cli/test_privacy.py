"""What a run leaves behind does not name the folders of its files, unless asked to."""

import shutil
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from helpers import DDS

from ddip_pl import cli
from ddip_pl.callbacks.fingerprint import fingerprint
from ddip_pl.cli.reconstruct import without_folders

SECRET = "Zzyzx"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, phantom_volume, tiny_prior):
    """The current folder, with a volume and a prior below the name of a patient."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb" / name))
    place = tmp_path / SECRET
    place.mkdir()
    shutil.copy(phantom_volume, place / "phantom.nii.gz")
    shutil.copy(tiny_prior, place / "tiny.safetensors")
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    given = ("--data.path", f"{folder}/{SECRET}/phantom.nii.gz", "--model.prior", f"{folder}/{SECRET}/tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddip-pl", "test", *DDS, *given, "--data.slices", "1", *arguments])
        try:
            return cli.main()
        finally:
            wandb.finish()


def telling(folder: Path) -> set[str]:
    """Names of the files that contain the name of the patient."""
    return {path.name for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()}


def test_no_file_names_the_folders(folder):
    assert run(folder, "--output", "out", "--wandb", "offline") == 0
    assert (folder / "out" / "phantom" / "report.html").is_file()
    assert list((folder / "out").glob("wandb/offline-run-*/*.wandb"))
    assert telling(folder / "out") == set()
    settings = yaml.safe_load((folder / "out" / "phantom" / "config.yaml").read_text())
    assert settings["data"]["init_args"]["path"] == "phantom.nii.gz"
    assert settings["model"]["init_args"]["prior"] == "tiny.safetensors"


def test_identify_keeps_them(folder):
    assert run(folder, "--output", "out", "--wandb", "offline", "--identify", "true") == 0
    found = telling(folder / "out")
    assert {"config.yaml", "report.html"} <= found
    assert any(name.endswith(".wandb") for name in found)


def test_only_folders_are_left_out(folder):
    (folder / "scan.h5").touch()
    config = yaml.safe_dump(
        {"path": [f"{folder}/scan.h5:a/b", "x.npy"], "prior": "../p/q.ckpt", "output": None, "rate": 1e-5,
         "class_path": "ddip_pl.estimators.DDS", "window": [-1000.0, 3], "folder": "/"}
    )  # fmt: skip
    found = yaml.safe_load(without_folders(config))
    assert found == {
        "path": ["scan.h5:a/b", "x.npy"], "prior": "q.ckpt", "output": None, "rate": 1e-5,
        "class_path": "ddip_pl.estimators.DDS", "window": [-1000.0, 3], "folder": "/",
    }  # fmt: skip


def test_weights_to_start_from_count_by_their_contents(folder):
    """Their path may be that of an earlier result."""
    (folder / SECRET / "lora").mkdir()
    weights = folder / SECRET / "lora" / "weights"
    settings = {"model": {"training": {"start_from": str(weights.parent)}}, "data": {}, "trainer": {}}
    settings["seed_everything"] = 0
    found = []
    for content in ("a", "b"):
        weights.write_text(content)
        found.append(fingerprint("test", settings))
    assert SECRET not in str(found)
    assert found[0] != found[1]
