"""The Python examples of the manual, run unchanged."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, make_network, save_phantoms
from lightning import seed_everything
from torch import Tensor

import ddip_pl
from ddip_pl import cli
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.evaluation.metrics import summary


def examples(page: str) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_five_lines_give_what_the_command_line_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volume = save_phantoms(tmp_path / "phantom.nii.gz", 4)
    configs = [argument for name in ("task/sv_ct", "method/dds") for argument in ("--config", f"configs/{name}.yaml")]
    monkeypatch.setattr("sys.argv", ["ddip-pl", "test", *configs, "--data.path", str(volume), "--output", "run"])
    assert cli.main() == 0

    seed_everything(0, verbose=False)
    operator = partial(ddip_pl.ParallelBeamCT, angles=60)
    measurement, frame = VolumeDataModule(str(volume), operator, 2e-4, window=(-1000, 1000)).simulate(128)
    np.save("sinograms.npy", measurement.y.numpy())
    names: dict[str, Any] = {}
    [code] = examples("README.md")
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code, names)

    images = torch.from_numpy(names["result"].images)
    expected = nib.load(tmp_path / "run" / "phantom" / "reconstruction.nii.gz")  # type: ignore[attr-defined]
    assert np.array_equal(frame.in_units(frame.unpad(images)), np.asarray(expected.dataobj))  # type: ignore[attr-defined]
    assert (tmp_path / "outputs" / "mine" / "reconstruction.nii.gz").is_file()


def test_an_operator_in_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    code = examples("docs/extending.md")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    x = torch.zeros(4, 1, 128, 128)
    x[:, :, 30:90, 40:100] = 0.8
    names: dict[str, Any] = {"y": 16 * F.avg_pool2d(x, 4)}
    exec(code, names)
    norm = re.search(r"norm=([\d.]+)", capsys.readouterr().out)
    assert norm is not None
    assert float(norm[1]) == pytest.approx(4, rel=1e-3)
    repeated = (names["y"] / 16).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert summary(names["result"].images, x)["psnr"] > summary(repeated, x)["psnr"] + 3


def measurement() -> ddip_pl.Measurement:
    A = ddip_pl.ParallelBeamCT((4, 16, 16), angles=9)
    x = torch.rand(A.domain, generator=torch.Generator().manual_seed(0))
    return ddip_pl.Measurement(A(x), A, 1e-3, x)


def test_the_algorithm_as_a_plain_object(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"measurement": measurement(), "prior": make_network()}
    exec(examples("docs/algorithm.md")[0], names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 80
    residuals = [float(line.split()[1]) for line in lines]
    assert residuals[-1] < residuals[0]


def test_the_lines_of_the_algorithm_are_in_the_code() -> None:
    source = "".join(
        (ROOT / "ddip_pl" / path).read_text() for path in ("reconstruction/sampler.py", "adaptation/volume.py")
    )
    table = re.findall(r"^\| .* \| (`.*`) \|$", (ROOT / "docs/algorithm.md").read_text(), re.MULTILINE)
    lines = [line for cell in table for line in re.findall(r"`([^`]*[(:][^`]*)`", cell)]
    assert len(lines) == 10
    assert [line for line in lines if line not in source] == []


def test_the_page_about_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every example of the page in order, with the reconstruction replaced by a fake."""
    calls: list[dict[str, Any]] = []

    class Result:
        images = Tensor()

        def metrics(self, reference: Tensor) -> None:
            pass

        def save(self, folder: str) -> None:
            pass

    def reconstruct(y: Tensor, A: ddip_pl.LinearOperator, **settings: Any) -> Result:
        calls.append(settings)
        return Result()

    monkeypatch.setattr(ddip_pl, "reconstruct", reconstruct)
    names: dict[str, Any] = {"y": None, "reference": None, "sinogram_in_mm": torch.ones(16, 1, 60, 182)}
    for code in examples("docs/python.md"):
        exec(code, names)
    assert calls[0] == {"sigma_y": 2e-4, "method": "d3ip"}
    assert calls[1]["method"].sampler.steps == 20
    assert names["method"].sampler == ddip_pl.Sampler.published()
