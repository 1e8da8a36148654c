"""A reconstructed volume: its figures of merit, its direct inversion, and the folder it is saved to."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.evaluation import metrics
from ddip_pl.evaluation.metrics import by_slice, summary
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.results import result as module
from ddip_pl.results.folder import RECORD, PartlyWritten, finished, read_case, read_run
from ddip_pl.results.result import Result
from ddip_pl.volumes.frame import Frame

MARGIN = (1, 2, 0, 3)
AFFINE = np.array([[-2.0, 0, 0, 5], [0, -1.5, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)


class Half(LinearOperator):
    """`A x = x / 2`; the first column is not measured."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1:] / 2

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(2 * y, (1, 0), value=7.0)

    def visible(self, x: Tensor) -> Tensor:
        return torch.cat([0 * x[..., :1], x[..., 1:]], dim=-1)


def make_result(sigma_y: float = 0.05, with_reference: bool = True, **changes: Any) -> Result:
    """Three slices of 16 x 14 pixels, with margin."""
    generator = torch.Generator().manual_seed(0)
    operator = Half((3, 16, 14))
    x = torch.rand(operator.domain, generator=generator)
    y = operator(x) + sigma_y * torch.randn(operator.range, generator=generator)
    images = operator.visible(x + 0.1 * torch.randn(x.shape, generator=generator))
    trajectory = [{"t": 9, "residual": 0.5, "seconds": 1.5}, {"t": 3, "residual": 0.25, "loss": 2.0, "seconds": 2.0}]
    frame = Frame("head", AFFINE, (-100.0, 300.0), MARGIN, "HU")
    given = {
        "images": images, "measurement": Measurement(y, operator, sigma_y, x if with_reference else None),
        "trajectory": trajectory, "frame": frame, "peak_memory_bytes": 1000, "prior": "somewhere/tiny.safetensors",
    }  # fmt: skip
    return Result(**given | changes)


def test_figures_are_those_of_the_image_without_margin_and_of_all_that_is_measured() -> None:
    result = make_result()
    x, truth = (images[:, :, 1:14, :11].clone() for images in (result.images, result.measurement.reference))
    truth[..., 0] = 0
    expected = summary(x, truth)
    expected["residual"] = float(
        (result.images[..., 1:] / 2 - result.measurement.y).norm() / result.measurement.y.norm()
    )
    found = result.metrics()
    assert list(found) == ["psnr", "ssim", "residual", "discrepancy"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    noise = 0.05 * math.sqrt(3 * 16 * 13)
    assert found["discrepancy"] == pytest.approx(expected["residual"] * float(result.measurement.y.norm()) / noise)
    assert result.slice_metrics() == by_slice(x, truth)
    assert result.seconds == 3.5


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_another_reference_can_be_given(kind: Any) -> None:
    result = make_result(with_reference=False)
    assert list(result.metrics()) == ["residual", "discrepancy"]
    assert result.slice_metrics() == []
    given = kind(make_result().measurement.reference)
    assert result.metrics(given) == make_result().metrics()
    assert result.metrics(kind(result.images.clamp(0, 1)))["psnr"] == math.inf
    assert list(result.metrics()) == ["residual", "discrepancy"]


@pytest.mark.parametrize(
    "reference", [np.zeros((3, 1, 13, 11)), torch.zeros(3, 16, 14), np.zeros((3, 1, 16, 14), complex)]
)
def test_a_reference_of_another_kind_is_refused(reference: Any) -> None:
    with pytest.raises(InputError, match=r"the reference is .*; expected real numbers .*\(3, 1, 16, 14\)"):
        make_result().metrics(reference)


def test_images_may_be_an_array(tmp_path: Path) -> None:
    result = make_result()
    array = make_result(images=result.images.numpy())
    assert array.metrics() == result.metrics()
    array.save(tmp_path / "head")
    assert read_run(tmp_path / "head").slices == result.slice_metrics()


def test_no_discrepancy_without_noise() -> None:
    assert "discrepancy" not in make_result(sigma_y=0.0).metrics()


def test_direct_inversion_is_0_where_nothing_is_measured() -> None:
    direct = make_result().direct
    assert not direct.images[..., 0].any()
    assert torch.equal(direct.images[..., 1:], 2 * direct.measurement.y)
    assert direct.metrics()["residual"] == 0


def test_quality_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the metrics are used, SSIM is computed once per slice of the result and of the direct inversion."""
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **settings: calls.append(name) or function(*arguments, **settings)

    name = "structural_similarity_index_measure"
    monkeypatch.setattr(metrics, name, counted("ssim", getattr(metrics, name)))
    monkeypatch.setattr(module, "perceptual_distance", counted("lpips", lambda *_: 0.25))
    monkeypatch.setattr(Half, "pseudo_inverse", counted("inverse", Half.pseudo_inverse))
    result = make_result()
    assert result.metrics()["lpips"] == 0.25
    result.save(tmp_path / "head")
    result.slice_metrics()
    result.facts()
    assert (calls.count("ssim"), calls.count("lpips"), calls.count("inverse")) == (2 * 3, 2, 1)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    weights = AdaptedWeights({"a": torch.ones(2, 3)})
    result = make_result(weights=weights)
    result.save(tmp_path / "run" / "head", task="ct", method="mine", config="model: mine\n", hdf5=True)
    folder = tmp_path / "run" / "head"
    assert {path.name for path in folder.iterdir()} == {
        "reconstruction.nii.gz", "reference.nii.gz", "metrics.json", "slices.csv", "trajectory.csv", "config.yaml",
        "weights.safetensors", "reconstruction.h5", "figures", "report.html",
    }  # fmt: skip
    assert [path.name for path in (folder / "figures").iterdir()] == ["planes.png"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["head"]
    assert torch.equal(load_file(folder / "weights.safetensors")["a"], torch.ones(2, 3))

    assert finished(tmp_path) == [folder]
    run = read_run(folder)
    assert run.subject == ("ct", "head")
    assert list(run.metrics) == [
        "task", "method", "psnr", "ssim", "residual", "discrepancy", "input_psnr", "input_ssim", "input_residual",
        "input_discrepancy", "seconds", "peak_memory_bytes", "sigma_y", "units", "slices", "steps",
        "adapted_parameters", "prior", "device", "versions", "provenance", "warnings",
    ]  # fmt: skip
    assert run.metrics == {"task": "ct", "method": "mine"} | result.facts()
    assert run.metrics["adapted_parameters"] == 6
    assert run.metrics["prior"] == "tiny.safetensors"
    assert run.slices == result.slice_metrics()
    assert run.trajectory == [{"step": 1, **result.trajectory[0]}, {"step": 2, **result.trajectory[1]}]
    case = read_case([run])
    assert (case.task, case.volume, case.runs[0].name, case.runs[0].config) == ("ct", "head", "mine", "model: mine\n")
    volume = nib.load(folder / "reconstruction.nii.gz")
    assert np.allclose(volume.affine, AFFINE)
    assert np.allclose(volume.get_fdata(), (400 * result.volume[:, 0] - 100).numpy().transpose(2, 1, 0), atol=1e-3)


def test_numbers_that_json_does_not_have_are_kept(tmp_path: Path) -> None:
    perfect = make_result()
    perfect = make_result(images=perfect.measurement.operator.visible(perfect.measurement.reference))
    perfect.save(tmp_path / "head", task="nan")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "head" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse)["psnr"] == "inf"
    run = read_run(tmp_path / "head")
    assert (run.metrics["psnr"], run.metrics["task"]) == (math.inf, "nan")
    assert run.metrics["input_psnr"] == perfect.direct.metrics()["psnr"]


def test_results_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    make_result().save(folder)
    make_result(with_reference=False).save(folder)
    assert not (folder / "reference.nii.gz").exists()
    assert not (folder / "slices.csv").exists()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("dear to somebody\n")
    with pytest.raises(InputError, match="is not a ddip-pl result"):
        make_result().save(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["head", "notes.txt"]


def test_an_interrupted_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    make_result(prior="a").save(tmp_path / "head")
    monkeypatch.setattr(module, "save_nifti", full)
    with pytest.raises(OSError, match="no space"):
        make_result(prior="b").save(tmp_path / "head")
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    assert read_run(tmp_path / "head").metrics["prior"] == "a"


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        ("write_run", "metrics.json"),
        ("write_dicom", "dicom"),
        ("write_hdf5", "reconstruction.h5"),
        ("compare", "planes.png"),
        ("write_page", "report.html"),
    ],
)
def test_a_file_that_cannot_be_written_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, name: str
) -> None:
    original = getattr(module, writer)

    def break_off(*arguments: object) -> None:
        original(*arguments)
        raise OSError("no space left on device")

    make_result().save(tmp_path / "whole", dicom=True, hdf5=True)
    monkeypatch.setattr(module, writer, break_off)
    with pytest.raises(PartlyWritten, match=re.escape(f"{name} (no space left on device) could not be written")):
        make_result().save(tmp_path / "head", dicom=True, hdf5=True)
    whole, written = (
        {path.name for path in (tmp_path / folder).rglob("*") if path.suffix != ".dcm"} for folder in ("whole", "head")
    )
    lost = {*RECORD} if writer == "write_run" else {name}
    assert written == whole - lost


# --- samples --------------------------------------------------------------------------------------------------


def with_samples(count: int = 4) -> Result:
    """Images of which the operator does not measure the first column, as the mean of samples."""
    samples = torch.rand(count, 3, 1, 16, 14, generator=torch.Generator().manual_seed(2))
    return make_result(images=samples.mean(0), samples=samples)


def test_maps_of_the_uncertainty_are_scaled_like_the_volume_and_not_shifted(tmp_path: Path) -> None:
    result = with_samples()
    assert result.samples is not None
    inside = np.s_[:, 0, 1:14, :11]  # without margin
    deviation = 400 * result.samples.numpy()[:, *inside].std(0, ddof=1).transpose(2, 1, 0)
    hidden = 400 * result.images.numpy()[inside].transpose(2, 1, 0)
    hidden[1:] = 0  # only the first column is in the null space
    result.save(tmp_path / "head")
    for name, expected in {"standard_deviation": deviation, "null_space": hidden}.items():
        written = nib.load(tmp_path / "head" / f"{name}.nii.gz")
        assert np.allclose(written.get_fdata(), expected, atol=1e-2)
        assert np.allclose(written.affine, AFFINE)
    run = read_run(tmp_path / "head")
    assert run.metrics["samples"] == 4
    assert run.metrics["standard_deviation"] == pytest.approx(deviation.mean(), rel=1e-5)
    energy = result.volume[..., 0].square().sum() / result.volume.square().sum()
    assert run.metrics["null_space_energy"] == pytest.approx(float(energy), rel=1e-4)
    [shown] = read_case([run]).runs
    assert {name: image.shape for name, image in shown.maps.items()} == dict.fromkeys(result.maps, (11, 13, 3))


def test_without_samples_nothing_is_said_of_the_uncertainty(tmp_path: Path) -> None:
    with_samples().save(tmp_path / "head")
    result = make_result()
    result.save(tmp_path / "head")
    assert result.standard_deviation is None
    assert (result.maps, result.uncertainty) == ({}, {})
    assert not (tmp_path / "head" / "standard_deviation.nii.gz").exists()
    assert read_case([read_run(tmp_path / "head")]).runs[0].maps == {}


def test_samples_move_with_the_result() -> None:
    moved = with_samples().to("meta")
    assert moved.samples is not None
    assert moved.samples.device.type == "meta"
