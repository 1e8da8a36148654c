"""Reading runs from their folders into tables and pages."""

import json
import math
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from ddip_pl.errors import InputError
from ddip_pl.report.page import Shown
from ddip_pl.results.folder import read_case, read_run, write_run
from ddip_pl.results.plots import gallery
from ddip_pl.results.tables import by_subject, markdown, read_tests

AFFINE = np.diag([-2.0, -1.5, 3.0, 1.0])


def image(seed: int, slices: int = 9) -> Nifti1Image:
    data = np.random.default_rng(seed).uniform(-1000, 1000, (20, 16, slices)).astype(np.float32)
    return Nifti1Image(data, AFFINE)


def save_run(folder: Path, method: str, slices: int = 9, **metrics: object) -> Path:
    """Write a run's folder, with default metrics where none are given."""
    folder.mkdir(parents=True)
    known = {
        "task": "sv_ct", "method": method, "psnr": 30.0, "ssim": 0.9, "slices": slices, "seconds": 18.0,
        "adapted_parameters": 1234, "peak_memory_bytes": 5e8,
    }  # fmt: skip
    rows = [{"slice": k, "psnr": 30.0, "ssim": 0.9} for k in range(slices)]
    shown = Shown(method, image(len(method), slices), known | metrics, rows, [{"step": 1, "residual": 0.5}], "a: 1\n")
    nib.save(shown.image, folder / "reconstruction.nii.gz")
    write_run(folder, shown, image(9, slices))
    return folder


def test_finished_runs_are_read_from_their_folders(tmp_path: Path) -> None:
    folder = tmp_path / "phantom"
    folder.mkdir()
    nib.save(image(0), folder / "reconstruction.nii.gz")
    (folder / "metrics.json").write_text(json.dumps({"psnr": 30.0, "task": "sv_ct", "method": "dds"}))
    (folder / "config.yaml").write_text("model:\n  steps: 5\n")
    (folder / "trajectory.csv").write_text("step,t,residual,loss\n1,9,0.5,\n2,8,0.25,0.125\n")
    case = read_case([read_run(folder)])
    assert case.reference is None
    assert (case.task, case.volume, case.runs[0].name, case.runs[0].slices) == ("sv_ct", "phantom", "dds", [])
    assert case.runs[0].config == "model:\n  steps: 5\n"
    assert case.runs[0].trajectory == [
        {"step": 1, "t": 9, "residual": 0.5},
        {"step": 2, "t": 8, "residual": 0.25, "loss": 0.125},
    ]
    nib.save(image(9), folder / "reference.nii.gz")
    reference = read_case([read_run(folder)]).reference
    assert reference is not None
    assert np.array_equal(reference.get_fdata(), image(9).get_fdata())


def test_numbers_that_json_does_not_have_are_read_as_numbers(tmp_path: Path) -> None:
    metrics = read_run(save_run(tmp_path / "a", "nan", psnr=math.inf, residual=math.nan, prior=None)).metrics
    assert (metrics["psnr"], metrics["method"], metrics["prior"]) == (math.inf, "nan", None)
    assert math.isnan(metrics["residual"])


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path)


def test_tests_come_in_the_order_of_their_methods(tmp_path: Path) -> None:
    for method in ("a", "b", "c"):
        save_run(tmp_path / method / "head", method)
    assert [run.method for run in read_tests(tmp_path, ["c", "a"])] == ["c", "a", "b"]


def test_the_best_is_bold(tmp_path: Path) -> None:
    save_run(tmp_path / "dds" / "head", "dds", psnr=31.0, lpips=0.25)
    save_run(tmp_path / "tv" / "head", "tv", ssim=0.95)
    [(_, rivals)] = by_subject(read_tests(tmp_path, ["dds", "tv"]))
    assert markdown(rivals).splitlines()[2:] == [
        "| dds | **31.00** | 0.900 | 0.250 | 9 | 2.00 | 1,234 | 0.50 |",
        "| tv | 30.00 | **0.950** | - | 9 | 2.00 | 1,234 | 0.50 |",
    ]


def test_gallery_has_a_row_for_each_method_and_the_reference(tmp_path: Path) -> None:
    save_run(tmp_path / "dds" / "head", "dds")
    save_run(tmp_path / "tv" / "head", "tv", slices=5)
    [(_, rivals)] = by_subject(read_tests(tmp_path, []))
    gallery(rivals, tmp_path / "x.png")
    picture = matplotlib.image.imread(tmp_path / "x.png")
    assert picture.shape[:2] == (3 * 3 * 90, 3 * 3 * 90)
    assert picture[..., :3].std() > 0.1
