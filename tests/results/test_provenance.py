"""Every output says where it comes from."""

import hashlib
import json
import subprocess
from pathlib import Path

import h5py
import nibabel as nib
import pytest
import torch
from pydicom import dcmread

import ddip_pl
from ddip_pl.callbacks import fingerprint
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.checkpoint import WEIGHTS
from ddip_pl.results import provenance
from ddip_pl.results.provenance import commit, digest
from ddip_pl.results.result import Result


def sha256(path: Path) -> str:
    """As the command `sha256sum` has it."""
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.fixture
def result() -> Result:
    operator = ParallelBeamCT((2, 16, 16), angles=8)
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    samples = torch.stack([x, x + 0.1])
    return Result(x, Measurement(operator(x), operator, 0.01, x), prior="ellipses_128", samples=samples)


def test_every_output_has_its_provenance(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab-dirty")
    folder = tmp_path / "v"
    result.save(folder, dicom=True, hdf5=True, origin={"settings": "5e77", "input": "1297"})
    expected = {
        "version": ddip_pl.__version__,
        "commit": "0123456789ab-dirty",
        "prior": sha256(WEIGHTS / "ellipses_128.safetensors")[:32],
        "measurement": hashlib.sha256(result.measurement.y.numpy().tobytes()).hexdigest()[:32],
        "settings": "5e77",
        "input": "1297",
    }
    assert json.loads((folder / "metrics.json").read_text())["provenance"] == expected
    images = sorted(folder.glob("*.nii.gz"))
    assert len(images) == 4
    for path in images:
        header = nib.load(path).header
        [comment] = header.extensions
        assert json.loads(comment.get_content()) == expected
        assert header["descrip"].item() == f"ddip-pl {ddip_pl.__version__}, commit 0123456789ab-dirty".encode()
    with h5py.File(folder / "reconstruction.h5") as file:
        assert json.loads(file.attrs["provenance"]) == expected
    software = list(dcmread(folder / "dicom" / "0001.dcm").SoftwareVersions)
    assert software[:2] == [f"ddip-pl {ddip_pl.__version__}", "commit 0123456789ab-dirty"]
    assert f"prior {expected['prior']}" in software
    assert max(map(len, software)) <= 64  # the longest that DICOM allows
    report = (folder / "report.html").read_text()
    assert all(value in report for value in expected.values())


def test_the_commit_is_that_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    commit.cache_clear()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert commit() is None  # installed
    git("init", "-q")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    git("tag", "v1")
    commit.cache_clear()
    assert commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "a").write_text("b")
    commit.cache_clear()
    assert commit() == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    commit.cache_clear()
    assert commit() is None  # no git
    commit.cache_clear()


def test_a_file_has_the_hash_that_everybody_knows(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "c"
    file.write_bytes(b"12345")
    assert digest(file) == sha256(file)[:32]
    before = digest(tmp_path / "a")
    file.rename(tmp_path / "a" / "c")
    assert digest(tmp_path / "a") != before


def test_settings_and_input_by_hash() -> None:
    found = {
        "command": "test",
        "the contents of data.path": "ab12 series",
        "the contents of model.prior": "cd",
        "PyTorch": "2",
    }
    hashes = fingerprint.provenance(found)
    assert hashes["input"] == "ab12 series"
    assert hashes == fingerprint.provenance({**dict(reversed(found.items())), "PyTorch": "3"})
    assert hashes["settings"] != fingerprint.provenance(found | {"command": "predict"})["settings"]
    several = {"the contents of data.path[0]": "a", "the contents of data.path[1]": "b"}
    assert fingerprint.provenance(several)["input"] == "a, b"
