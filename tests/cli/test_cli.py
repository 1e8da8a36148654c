"""The command line: whole runs, and error messages about bad input."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers import CONFIGS, D3IP, DDS, FIT, ROOT, TASK, make_network
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML
from safetensors.torch import load_file

from ddip_pl import cli
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import load_prior, save_prior
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.reconstruction.loop import ReverseDiffusionLoop
from ddip_pl.reconstruction.sampler import ReverseDiffusion
from ddip_pl.volumes.dicom import write_dicom
from ddip_pl.volumes.files import read_nifti, read_volume

MBIR = (
    *DDS, "--model.estimator", "ddip_pl.estimators.DiffusionMBIR", "--model.sampler.averaging", "0.5",
    "--model.sampler.spacing", "2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `ddip-pl` in this process; returns exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddip-pl", *arguments])
        capsys.readouterr()
        try:
            code = cli.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def reconstruct(run, phantom_volume, tiny_prior):
    """Reconstructs the phantom volume with the tiny prior; returns the folder with the results."""

    def call(command: str, *arguments: str, output: str = "out") -> Path:
        given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", output)
        code, _, error = run(command, *given, *arguments)
        assert (code, error) == (0, "")
        assert [path.name for path in Path(output).iterdir()] == ["phantom"]
        return Path(output, "phantom")

    return call


def volume(folder: Path) -> np.ndarray:
    return nib.load(folder / "reconstruction.nii.gz").get_fdata()


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of files by path, None for folders."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "settings"), [("dds", DDS), ("d3ip", D3IP)])
def test_results_of_a_run(reconstruct, phantom_volume, method, settings):
    folder = reconstruct("test", *settings, "--data.slices", "4")

    expected = {"reconstruction.nii.gz", "reference.nii.gz", "metrics.json", "slices.csv", "trajectory.csv"}
    expected |= {"config.yaml", "figures", "report.html"}
    expected |= {"lora"} if method == "d3ip" else set()
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / "figures" / "planes.png").read_bytes().startswith(b"\x89PNG")

    scan = read_nifti(phantom_volume)
    image = nib.load(folder / "reconstruction.nii.gz")
    assert image.shape == (28, 32, 4) or image.shape == (32, 28, 4)
    corner = nib.affines.apply_affine(image.affine, (0, image.shape[1] - 1, 0))  # lowest left voxel of the first slice
    np.testing.assert_allclose(corner, nib.affines.apply_affine(scan.affine, (0, 0, 1)), atol=1e-4)

    metrics = json.loads((folder / "metrics.json").read_text())
    found = np.clip((image.get_fdata() + 1000) / 2000, 0, 1)[:, ::-1]
    truth = (scan.data[..., 1:5] + 1000) / 2000
    errors = ((found - truth) ** 2).mean((0, 1))
    assert metrics["psnr"] == pytest.approx(-10 * np.log10(errors.mean()), abs=1e-3)
    assert metrics["input_psnr"] > 15
    assert 0 < metrics["input_residual"] < 0.1
    assert -1 <= metrics["ssim"] <= 1
    assert (metrics["task"], metrics["method"], metrics["slices"]) == ("sv_ct", method, 4)
    assert metrics["steps"] == 2
    assert metrics["sigma_y"] == 2e-4
    assert metrics["prior"] == "tiny.safetensors"
    assert metrics["peak_memory_bytes"] > 50e6
    assert metrics["residual"] > 0

    rows = list(csv.DictReader((folder / "slices.csv").open()))
    assert [row["slice"] for row in rows] == ["0", "1", "2", "3"]
    np.testing.assert_allclose([float(row["psnr"]) for row in rows], -10 * np.log10(errors), atol=1e-3)
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(metrics["ssim"], abs=1e-5)

    steps = list(csv.DictReader((folder / "trajectory.csv").open()))
    assert [(step["step"], float(step["t"])) for step in steps] == [("1", 500), ("2", 0)]
    assert metrics["seconds"] == pytest.approx(sum(float(step["seconds"]) for step in steps))

    trained = load_file(folder / "lora" / "adapter_model.safetensors") if method == "d3ip" else {}
    assert metrics["adapted_parameters"] == sum(weight.numel() for weight in trained.values())
    assert (metrics["adapted_parameters"] > 0) == (method == "d3ip")


def test_written_settings_reproduce_the_run(run, reconstruct):
    first = reconstruct("test", *D3IP, "--data.slices", "3", "--identify", "true")
    settings = yaml.safe_load((first / "config.yaml").read_text())
    assert settings["data"]["init_args"]["slices"] == 3
    assert settings["model"]["init_args"]["adaptation"]["init_args"]["training"]["rank"] == 4
    given = ("--config", str(first / "config.yaml"), "--output", "again")
    assert run("test", *given)[0] == 0
    np.testing.assert_array_equal(volume(Path("again/phantom")), volume(first))


BASELINES = {"fbp": 1, "admm_tv": 3, "l1_wavelet": 3, "llr": 3, "dip": 3}  # and their iterations


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_leave_the_same_results(run, phantom_volume, method):
    iterations = () if method == "fbp" else ("--model.iterations", "3")
    given = ("--data.path", str(phantom_volume), "--data.slices", "2", "--data.size", "32", *iterations)
    volumes = []
    for command, folder in (("test", Path("a/phantom")), ("predict", Path("b/phantom"))):
        code, out, _ = run(
            command, *TASK, "--config", f"{CONFIGS}/method/{method}.yaml", *given, "--output", folder.parts[0]
        )
        assert code == 0
        assert "phantom, 2 slices" in out
        expected = {"reconstruction.nii.gz", "metrics.json", "trajectory.csv", "config.yaml", "figures", "report.html"}
        assert {path.name for path in folder.iterdir()} - {"slices.csv", "reference.nii.gz"} == expected
        metrics = json.loads((folder / "metrics.json").read_text())
        assert ("psnr" in metrics) == (folder / "slices.csv").exists() == (command == "test")
        assert (metrics["method"], metrics["prior"], metrics["adapted_parameters"]) == (method, None, 0)
        rows = list(csv.DictReader((folder / "trajectory.csv").open()))
        assert len(rows) == metrics["steps"] == BASELINES[method]
        assert float(rows[-1]["residual"]) == pytest.approx(metrics["residual"])
        volumes.append(volume(folder))
    np.testing.assert_array_equal(*volumes)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"].startswith("ddip_pl.baselines.")


def test_size_without_a_prior(run, phantom_volume):
    given = ("--data.path", str(phantom_volume), "--data.slices", "1", "--output", "out")
    assert run("test", *TASK, "--model", "DirectInverse", *given)[0] == 0
    assert volume(Path("out/phantom")).shape == (128, 112, 1)


def test_dicom_series_beside_the_volume(run, phantom_volume, monkeypatch):
    given = (*TASK, "--model", "DirectInverse", "--data.path", str(phantom_volume), "--data.slices", "3")
    assert run("predict", *given, "--output", "out", "--dicom", "true")[0] == 0
    image, series = (read_volume(Path("out/phantom", name)) for name in ("reconstruction.nii.gz", "dicom"))
    np.testing.assert_allclose(series.data, image.data, atol=np.ptp(image.data) / 65535)
    np.testing.assert_allclose(series.affine, image.affine, atol=1e-5)

    monkeypatch.setattr("ddip_pl.results.result.write_dicom", None)  # refused before the run
    sheared = nib.load(phantom_volume)
    nib.save(nib.Nifti1Image(sheared.get_fdata(), [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "s.nii")
    code, _, error = run("predict", *given, "--data.path", "s.nii", "--output", "new", "--dicom", "true")
    assert (code, Path("new").exists()) == (2, False)
    assert "not perpendicular" in error


def test_no_baseline_goes_on_from_a_checkpoint(run, phantom_volume, monkeypatch):
    monkeypatch.setattr(ReverseDiffusionLoop, "_tell", lambda loop, *_: loop.trainer.save_checkpoint("some.ckpt"))
    given = (*TASK, "--data.path", str(phantom_volume), "--data.slices", "1", "--model", "DirectInverse")
    assert run("test", *given, "--output", "out")[0] == 0
    code, _, error = run("test", *given, "--ckpt_path", "some.ckpt", "--output", "b")
    line = "DirectInverse cannot continue from a checkpoint; leave out --ckpt_path"
    assert (code, error) == (2, f"ddip-pl: error: {line}\n")


def test_another_estimator_from_the_command_line(reconstruct):
    changes = ("--model.estimator.init_args.axes", "all", "--model.sampler.steps", "3", "--identify", "true")
    folder = reconstruct("test", *MBIR, *changes)
    settings = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert settings["estimator"]["class_path"].endswith("DiffusionMBIR")
    assert settings["estimator"]["init_args"]["axes"] == "all"
    assert settings["estimator"]["init_args"]["iterations"] == 10  # its own default, not that of DDS
    assert (settings["sampler"]["averaging"], settings["sampler"]["spacing"]) == (0.5, 2)
    steps = list(csv.DictReader((folder / "trajectory.csv").open()))
    assert [float(step["t"]) for step in steps] == [500, 125, 0]
    again = reconstruct("test", "--config", str(folder / "config.yaml"), "--output", "again", output="again")
    np.testing.assert_array_equal(volume(again), volume(folder))


def test_prediction_reconstructs_the_same_and_compares_nothing(reconstruct):
    tested = reconstruct("test", *DDS, output="tested")
    predicted = reconstruct("predict", *DDS, output="predicted")
    np.testing.assert_array_equal(volume(predicted), volume(tested))
    metrics = json.loads((predicted / "metrics.json").read_text())
    assert metrics["residual"] > 0
    assert not {"psnr", "ssim", "input_psnr", "input_ssim"} & set(metrics)
    assert not (predicted / "slices.csv").exists()


def test_seed_decides_about_the_volume(reconstruct):
    settings = (*D3IP, "--data.slices", "3", "--seed_everything")
    first, again, other = (
        volume(reconstruct("test", *settings, seed, output=name)) for seed, name in (("1", "a"), ("1", "b"), ("2", "c"))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1


def test_results_replace_those_of_an_earlier_run(reconstruct):
    folder = reconstruct("test", *D3IP, "--data.slices", "3")
    before = volume(folder)
    reconstruct("test", *DDS, "--data.slices", "2")
    assert volume(folder).shape[2] == 2 < before.shape[2]
    assert not (folder / "lora").exists()


def test_results_go_to_a_folder_of_the_run_by_default(run, phantom_volume, tiny_prior):
    code, _, _ = run(
        "test", *DDS, "--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--data.slices=1"
    )
    assert code == 0
    [folder] = Path("outputs").iterdir()
    assert re.fullmatch(r"sv_ct-dds-\d{8}-\d{6}", folder.name)
    assert (folder / "phantom" / "metrics.json").is_file()


def test_settings_refer_to_each_other(reconstruct):
    Path("more.yaml").write_text("method: fast_${model.sampler.steps}\ndata: {slices: 3}\n"
                                 "model: {sampler: {steps: 1}, batch_size: '${data.slices}'}\n")  # fmt: skip
    folder = reconstruct("test", *DDS, "--config", "more.yaml")
    assert json.loads((folder / "metrics.json").read_text())["method"] == "fast_1"
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["batch_size"] == 3
    assert volume(folder).shape[2] == 3


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `ddip-pl` in a separate process: Lightning writes to the standard error of the time of its import."""
    command = [sys.executable, "-m", "ddip_pl.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_console_of_a_run(phantom_volume, tiny_prior):
    given = ("--data.path", phantom_volume, "--model.prior", tiny_prior, "--output", "out", "--data.slices", "3")
    done = process("test", *D3IP, *given)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0].startswith("phantom, 3 slices")
    assert "phantom: files in out/phantom" in lines
    metrics = json.loads(Path("out/phantom/metrics.json").read_text())
    for row, name in (("(input)", "input_psnr"), ("d3ip", "psnr")):
        assert any(row in line and f"{metrics[name]:.2f} dB" in line for line in lines)


def test_configs_of_the_package_are_found_from_any_folder(run, phantom_volume):
    given = (
        "--config",
        "configs/task/sv_ct.yaml",
        "--config=configs/method/fbp.yaml",
        "--data.path",
        str(phantom_volume),
    )
    assert run("test", *given, "--output", "out")[0] == 0
    assert json.loads(Path("out/phantom/metrics.json").read_text())["method"] == "fbp"
    Path("configs/method").mkdir(parents=True)
    Path("configs/method/fbp.yaml").write_text("method: mine\nmodel: DirectInverse")  # local files take precedence
    assert run("test", *given, "--output", "out")[0] == 0
    assert json.loads(Path("out/phantom/metrics.json").read_text())["method"] == "mine"


def test_hdf5_output_is_the_same_volume(reconstruct):
    folder = reconstruct("test", *DDS, "--data.slices", "2", "--hdf5", "true")
    kept, image = read_volume(folder / "reconstruction.h5"), read_nifti(folder / "reconstruction.nii.gz")
    np.testing.assert_allclose(kept.data, image.data, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(kept.affine, image.affine, atol=1e-5)


# --- training -------------------------------------------------------------------------------------------------


def test_fit_leaves_a_prior_that_test_can_use(run, reconstruct):
    code, _, _ = run(*FIT)
    assert code == 0
    network = load_prior("fit/prior.safetensors")
    assert network.config.image_size == 16
    folder = reconstruct("test", *DDS, "--model.prior", "fit/prior.safetensors", "--data.slices", "1")
    assert max(volume(folder).shape) == 16


# --- internal errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_one_line_and_leaves_no_empty_folder(run, phantom_volume, tiny_prior, monkeypatch, debug):
    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(ReverseDiffusion, "advance", fault)
    given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", "new/out")
    code, _, error = run("test", *DDS, *given, *(["--debug"] if debug else []))
    assert code == 1
    assert error.endswith("ddip-pl: internal error: RuntimeError('a fault'); add --debug for a traceback\n")
    assert ("Traceback" in error) == debug
    assert not Path("new").exists()


def test_debug_shows_where_bad_input_was_found(run):
    code, _, error = run("test", "--config", "none.yaml", "--debug")
    assert code == 2
    assert "Traceback" in error
    assert re.fullmatch("ddip-pl: error: .*none.yaml.*", error.splitlines()[-1])


def test_a_folder_that_was_there_stays(run, folder, phantom_volume, tiny_prior, monkeypatch):
    def bad(*_: object) -> None:
        raise InputError("bad\ninput")

    Path("out").mkdir()
    monkeypatch.setattr(ReverseDiffusion, "advance", bad)
    given = (*DDS, "--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output")
    assert run("test", *given, "out")[::2] == (2, "ddip-pl: error: bad input\n")
    assert Path("out").is_dir()

    def save_and_fail(loop: ReverseDiffusionLoop, *_: object) -> None:
        loop.trainer.save_checkpoint("saved/last.ckpt")
        raise InputError("later")

    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ReverseDiffusionLoop, "_tell", save_and_fail)
    assert run("test", *given, "saved")[0] == 2
    assert [path.name for path in Path("saved").iterdir()] == ["last.ckpt"]


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory, tiny_prior) -> Path:
    """A folder with files that cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    data = np.random.default_rng(0).normal(size=(8, 8, 4)).astype(np.float32)
    hole = data.copy()
    hole[1, 2, 3] = np.nan
    infinite = data.copy()
    infinite[1, 2, 3] = np.inf
    arrays = {
        "2d": data[..., 0], "4d": np.stack([data, data], axis=-1), "nan": hole, "infinite": infinite,
        "constant": np.ones_like(data), "bone": data + 5000,
    }  # fmt: skip
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    negative = nib.Nifti1Image(data, np.eye(4)).to_bytes()
    (folder / "negative.nii").write_bytes(negative[:84] + b"\0\0\x80\xbf" + negative[88:])  # a voxel size of -1
    for name in "gap", "compressed":
        write_dicom(folder / name, np.tile(data, 2), np.eye(4), None, "some")
    second = sorted((folder / "gap").iterdir())[1]
    second.unlink()
    header = dcmread(folder / "compressed" / second.name)
    header.PixelData, header.file_meta.TransferSyntaxUID = encapsulate([b"\0" * 64]), MPEG2MPML
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    header.save_as(folder / "compressed" / second.name)
    with h5py.File(folder / "volumes.h5", "w") as file:
        file["image"], file["other"] = data, data
    (folder / "truncated.h5").write_bytes((folder / "volumes.h5").read_bytes()[:-1000])
    (folder / "text.nii.gz").write_text("no volume\n")
    (folder / "truncated.nii.gz").write_bytes((folder / "bone.nii.gz").read_bytes()[:400])
    (folder / "truncated.safetensors").write_bytes(tiny_prior.read_bytes()[:-1000])
    save_prior(folder / "complex.safetensors", make_network(in_channels=2), card={})
    (folder / "no.yaml").write_text("model: [steps: {\n")
    (folder / "text.yaml").write_text("just some text\n")
    (folder / "nowhere.yaml").write_text("model:\n  batch_size: ${model.nowhere}\n")
    (folder / "unknown.yaml").write_text("model:\n  nonsense: 1\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81" * 20)
    (folder / "text.ckpt").write_text("no checkpoint\n")
    (folder / "occupied" / "phantom").mkdir(parents=True)
    (folder / "occupied" / "phantom" / "notes.txt").write_text("dear to somebody\n")
    (folder / "file in the way").mkdir()
    (folder / "file in the way" / "phantom").write_text("dear to somebody\n")
    return folder


ADAPTATION = "--model.adaptation.init_args."
# Arguments added to a valid run, and what the error line must contain.
BAD_INPUT = {
    "missing volume": (["--data.path", "{bad}/none.nii"], "{bad}/none.nii: no such file"),
    "folder as volume": (["--data.path", "{bad}/occupied"], "{bad}/occupied: no DICOM images and no .npy slices"),
    "text as volume": (["--data.path", "{bad}/text.nii.gz"], "text.nii.gz: not a readable NIfTI file"),
    "truncated volume": (["--data.path", "{bad}/truncated.nii.gz"], "truncated.nii.gz: not a readable NIfTI file"),
    "2d": (["--data.path", "{bad}/2d.nii.gz"], "2d.nii.gz: 2 dimensions"),
    "4d": (["--data.path", "{bad}/4d.nii.gz"], "4d.nii.gz: 4 dimensions"),
    "negative voxel size": (["--data.path", "{bad}/negative.nii"], "negative.nii: not a readable NIfTI file"),
    "series with a gap": (["--data.path", "{bad}/gap"], "slices are missing there"),
    "compressed series": (["--data.path", "{bad}/compressed"], "no decoder for MPEG2 Main Profile / Main Level"),
    "truncated HDF5": (["--data.path", "{bad}/truncated.h5"], "truncated.h5: not a readable HDF5 file"),
    "wrong dataset": (["--data.path", "{bad}/volumes.h5:kspace"], "no dataset kspace; choose one as"),
    "no dataset": (["--data.path", "{bad}/volumes.h5"], "2 3D datasets of real numbers; choose one as"),
    "nan": (["--data.path", "{bad}/nan.nii.gz"], "nan.nii.gz: 1 voxels are NaN"),
    "infinite": (["--data.path", "{bad}/infinite.nii.gz"], "infinite.nii.gz: 1 voxels are NaN or infinite"),
    "constant": (["--data.path", "{bad}/constant.nii.gz"], "constant.nii.gz: all voxels have the same value"),
    "constant in the window": (["--data.path", "{bad}/bone.nii.gz"], "constant inside data.window (-1000.0, 1000.0)"),
    "reversed window": (["--data.window", "[5, 1]"], "data.window is (5.0, 1.0)"),
    "window of one value": (["--data.window", "[5]"], "data.window"),
    "unknown plane": (["--data.plane", "oblique"], "oblique"),
    "more slices than there are": (["--data.slices", "99"], "data.slices is 99; the volume has 6 axial slices"),
    "no slices": (["--data.slices", "0"], "slices is 0"),
    "slices after the last": (["--data.first", "6"], "data.first is 6"),
    "size zero": (["--data.size", "0"], "size is 0"),
    "size too small": (["--data.size", "2"], "slices of 28 x 32 pixels"),
    "negative noise": (["--data.sigma_y", "-0.1"], "VolumeDataModule: sigma_y is -0.1; give a number from 0 to 1000"),
    "noise that is not finite": (["--data.sigma_y", ".inf"], "sigma_y is inf"),
    "text as noise": (["--data.sigma_y", "much"], "data.sigma_y is much; expected a number"),
    "no angles": (["--data.operator.init_args.angles", "0"], "angles is 0"),
    "text as angles": (["--data.operator.init_args.angles", "x"], "angles"),
    "unknown operator": (["--data.operator", "ddip_pl.physics.Nothing"], "Nothing is none of its classes"),
    "missing prior": (["--model.prior", "{bad}/none.safetensors"], "prior {bad}/none.safetensors: no such file"),
    "truncated prior": (
        ["--model.prior", "{bad}/truncated.safetensors"],
        "prior {bad}/truncated.safetensors: truncated",
    ),
    "complex prior": (["--model.prior", "{bad}/complex.safetensors"], "the prior has 2 image channels, ParallelBeamCT"),
    "steps 0": (["--model.sampler.steps", "0"], "Sampler: steps is 0; give a whole number from 1 to 1000"),
    "more steps than timesteps": (["--model.sampler.steps", "990"], "990 steps from timestep 500"),
    "text as steps": (
        ["--model.sampler.steps", "many"],
        "model.sampler.steps is many; expected a whole number",
    ),
    "steps without a value": (["--model.sampler.steps"], "--model: expected one argument"),
    "start 2000": (["--model.sampler.start", "2000"], "start is 2000"),
    "eta 2": (["--model.sampler.eta", "2"], "eta is 2.0"),
    "spacing 0": (["--model.sampler.spacing", "0"], "Sampler: spacing is 0.0; give a number above 0 and at most 10"),
    "averaging 1": (["--model.sampler.averaging", "1"], "averaging is 1.0"),
    "negative averaging": (["--model.sampler.averaging", "-0.5"], "averaging is -0.5"),
    "batch size 0": (["--model.batch_size", "0"], "batch_size is 0"),
    "unknown estimator": (["--model.estimator", "Nothing"], "Nothing"),
    "estimator without iterations": (
        ["--model.estimator.init_args.iterations", "0"],
        "DDS: iterations is 0; give a whole number from 1 to 1000000",
    ),
    "negative gamma": (["--model.estimator.init_args.gamma", "-1"], "gamma is -1.0"),
    "total variation without strength": (
        [*MBIR[-6:], "--model.estimator.init_args.strength", "0"],
        "DiffusionMBIR: strength is 0.0",
    ),
    "total variation along unknown axes": (
        [*MBIR[-6:], "--model.estimator.init_args.axes", "rows"],
        "rows",
    ),
    "acceleration below 1": (
        [
            "--data.operator",
            "ddip_pl.physics.SingleCoilMRI",
            "--data.operator.mask",
            "ddip_pl.physics.PoissonDisc",
            "--data.operator.mask.acceleration",
            "0.5",
        ],
        "PoissonDisc: acceleration is 0.5; give a number from 1 to 1000",
    ),
    "real prior for complex images": (
        ["--config", f"{CONFIGS}/task/csmri.yaml"],
        "the prior has 1 image channels, SENSE needs 2; choose another --model.prior",
    ),
    "slices of their own in other planes": (
        ["--model.adaptation", "ddip_pl.adaptation.SlicewiseAdaptation", "--model.sampler.planes", "all"],
        "slices with their own weights cannot be denoised in other planes; set model.sampler.planes to slices",
    ),
    "unknown initial noise": (["--model.sampler.initial_noise", "none"], "initial_noise"),
    "unknown method": (["--model", "Nothing"], "Nothing"),
    "no method": (["--model", "ddip_pl.estimators.DDS"], "DDS"),
    "setting of another method": (
        ["--model", "DirectInverse", "--model.batch_size", "1"],
        "no setting model.batch_size",
    ),
    "total variation without strength as a method": (
        ["--model", "TotalVariation", "--model.strength", "0"],
        "strength is 0.0",
    ),
    "strength of no noise": (["--model", "L1Wavelet", "--data.sigma_y", "0"], "data.sigma_y is 0"),
    "iterations 0": (["--model", "DeepImagePrior", "--model.iterations", "0"], "iterations is 0"),
    "rank 0": ([f"{ADAPTATION}training.rank", "0"], "rank is 0"),
    "learning rate 0": ([f"{ADAPTATION}training.learning_rate", "0"], "learning_rate is 0.0"),
    "adaptation to more slices than there are": (
        [f"{ADAPTATION}slices", "7"],
        "draws 7 slices, the volume has 6; lower adaptation.slices",
    ),
    "unknown setting": (["--model.nonsense", "1"], "no setting model.nonsense"),
    "argument without option": (["extra"], "unrecognized arguments: extra"),
    "missing config file": (["--config", "{bad}/none.yaml"], "{bad}/none.yaml"),
    "folder as config file": (["--config", "{bad}"], "{bad}"),
    "config that is no YAML": (["--config", "{bad}/no.yaml"], "config {bad}/no.yaml: "),
    "config that is text": (
        ["--config", "{bad}/text.yaml"],
        "config {bad}/text.yaml: no named settings in it",
    ),
    "config that is binary": (["--config", "{bad}/binary.yaml"], "config {bad}/binary.yaml: "),
    "unknown setting in a config": (
        ["--config", "{bad}/unknown.yaml"],
        "config {bad}/unknown.yaml: no setting model.nonsense",
    ),
    "reference to nowhere": (
        ["--config", "{bad}/nowhere.yaml"],
        "config {bad}/nowhere.yaml: Interpolation key 'model.nowhere'",
    ),
    "output below a file": (
        ["--output", "{bad}/text.yaml/out"],
        "output folder {bad}/text.yaml/out: cannot be written",
    ),
    "output is a file": (["--output", "{bad}/text.yaml"], "output folder {bad}/text.yaml: cannot be written"),
    "other files in the way": (
        ["--output", "{bad}/occupied"],
        "{bad}/occupied/phantom exists and is not a ddip-pl result",
    ),
    "file in the way": (["--output", "{bad}/file in the way"], "phantom exists and is not a ddip-pl result"),
    "missing checkpoint": (["--ckpt_path", "{bad}/none.ckpt"], "ckpt_path {bad}/none.ckpt"),
    "text as checkpoint": (["--ckpt_path", "{bad}/text.ckpt"], "ckpt_path {bad}/text.ckpt"),
    "reference to nowhere in a text": (["--config", "model: {batch_size: '${model.nowhere}'}"], "key 'model.nowhere'"),
    "reference to nowhere in a setting": (["--model", "{batch_size: '${nowhere}'}"], "key 'nowhere'"),
    "unknown accelerator": (["--trainer.accelerator", "abacus"], "trainer: You selected an invalid accelerator name"),
    "no devices": (["--trainer.devices", "0"], "trainer: `Trainer(devices='0')`"),
    "text as seed": (["--seed_everything", "x"], "seed_everything"),
}
CALLED = "[{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_test_start: trap.call}}]"
# Settings that name code of another package, each as an argument and as the content of a config file.
STRANGE = {
    "method": (["--model", "trap.Trap"], "model: trap.Trap"),
    "estimator": (["--model.estimator", "trap.Trap"], "model: {estimator: {class_path: trap.Trap}}"),
    "deep inside": (
        ["--model.adaptation.init_args.training.loss_estimator", "trap.Trap"],
        "model: {adaptation: {init_args: {training: {loss_estimator: {class_path: trap.Trap}}}}}",
    ),
    "operator": (["--data.operator", "trap.Trap"], "data: {operator: {class_path: trap.Trap}}"),
    "function": (["--data.operator", "trap.call"], "data: {operator: trap.call}"),
    "mask": (
        ["--data.operator", "SingleCoilMRI", "--data.operator.mask", "trap.Trap"],
        "data: {operator: {class_path: ddip_pl.physics.SingleCoilMRI, init_args: {mask: {class_path: trap.Trap}}}}",
    ),
    "module inside ours": (
        ["--model.estimator", "ddip_pl.cli.parser.import_module"],
        "model: {estimator: ddip_pl.cli.parser.import_module}",
    ),
    "callback": (
        ["--trainer.callbacks", "[{class_path: trap.Trap}]"],
        "trainer: {callbacks: [{class_path: trap.Trap}]}",
    ),
    "function of a callback": (["--trainer.callbacks", CALLED], f"trainer: {{callbacks: {CALLED}}}"),
    "logger": (["--trainer.logger", "trap.Trap"], "trainer: {logger: {class_path: trap.Trap}}"),
    "strategy": ([], "trainer: {strategy: {class_path: trap.Trap}}"),
    "plugin": (["--trainer.plugins", "[{class_path: trap.Trap}]"], "trainer: {plugins: [{class_path: trap.Trap}]}"),
    "help": (["--model.help", "trap.Trap"], ""),
}
# What the line about a wrong setting begins with.
WRONG = {
    "setting of the training": (
        [f"{ADAPTATION}training", "{stepz: 3}"],
        "no setting model.adaptation.training.stepz; did you mean step or steps?",
    ),
    "setting of the adaptation": (
        [f"{ADAPTATION}slises", "3"],
        "no setting model.adaptation.slises; did you mean slices?",
    ),
    "setting of a callback": (
        ["--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save: 3}}]"],
        "no setting trainer.callbacks.save",
    ),
    "type": (
        ["--model.estimator.init_args.iterations", "x"],
        "model.estimator.iterations is x; expected a whole number",
    ),
    "boolean": (
        ["--model.estimator.iterations", "true"],
        "model.estimator.iterations is True; expected a whole number",
    ),
    "type of two": (
        ["--model.estimator.gamma", "x"],
        "model.estimator.gamma is x; expected a number or noise or infinite",
    ),
    "type of three": (
        ["--data.operator.angles", "x"],
        "data.operator.angles is x; expected a whole number or a list or null",
    ),
    "type inside an estimator inside the training": (
        [f"{ADAPTATION}training.loss_estimator", "{class_path: DDS, init_args: {iterations: x}}"],
        "model.adaptation.training.loss_estimator.iterations is x; expected a whole number",
    ),
    "name of a class": (
        ["--model.adaptation", "VolumeAdaption"],
        "model.adaptation: VolumeAdaption is none of its classes; did you mean VolumeAdaptation?",
    ),
    "path of a class": (["--model.estimator", "ddip_pl.estimators.DSD"], "model.estimator: DSD is none of its classes"),
    "choice": (["--model.sampler.planes", "rows"], "model.sampler.planes is rows; expected slices or all"),
    "option": (["--data.slicez", "3"], "no setting data.slicez; did you mean slices?"),
    "config": (["--config", "sv_cp"], "config sv_cp: no such file; did you mean sv_ct?"),
    "seed": (["--seed_everything", "-1"], "seed_everything is -1; give a whole number from 0 to 4294967295"),
    "not a number": (
        ["--model.estimator.spread", ".nan"],
        "DDS: spread is nan; give a number above 0 and at most 1e+12",
    ),
    "far too large": (["--data.sigma_y", "1e30"], "VolumeDataModule: sigma_y is 1e+30; give a number from 0 to 1000"),
    "missing module": (["--plugins", "no_such_module"], "plugins: no_such_module cannot be imported (No module named"),
    "plugins without a module": (["--plugins"], "argument --plugins: expected at least one argument"),
}
OPERATOR = ("--data.operator", "ddip_pl.physics.ParallelBeamCT", "--data.operator.init_args.angles", "8")
WITHOUT = {
    "no volume": (["test", *D3IP], "data.path"),
    "no operator": (["test", "--data.path", "x.nii", "--data.sigma_y", "0"], "data.operator"),
    "no noise level": (["predict", "--data.path=x.nii", *OPERATOR], "data.sigma_y"),
    "unknown command": (
        ["reconstruct"],
        "unknown command 'reconstruct'; commands are test, predict, simulate, benchmark, compare, demo, fit, validate",
    ),
    "option instead of command": (["--config", "x.yaml"], "unknown command '--config'"),
    "fit with a method": ([*FIT, "--config", f"{CONFIGS}/method/dds.yaml"], "model.estimator"),
    "fit with a window larger than the phantom": ([*FIT, "--data.crop", "17"], "data.crop is 17"),
    "fit of unknown phantoms": ([*FIT, "--data.variant", "squares"], "squares"),
    "fit from a missing checkpoint": ([*FIT, "--ckpt_path", "none.ckpt"], "ckpt_path none.ckpt"),
}


@pytest.fixture
def refused(run, folder, bad, monkeypatch):
    """Check that a command ends with one line on standard error before any long work, and writes nothing."""

    def started(*_: object) -> None:
        raise AssertionError("the long part of the run has started")

    monkeypatch.setattr(ReverseDiffusion, "advance", started)
    monkeypatch.setattr(DiffusionPrior, "training_step", started)

    def check(arguments: list[str], message: str) -> None:
        before = files(folder), files(bad)
        code, _, error = run(*(argument.replace("{bad}", str(bad)) for argument in arguments))
        assert code == 2
        assert re.fullmatch(r"ddip-pl: error: .+\n", error)  # the dot matches no line break
        assert message.replace("{bad}", str(bad)) in error
        assert (files(folder), files(bad)) == before

    return check


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(refused, phantom_volume, tiny_prior, case):
    arguments, message = BAD_INPUT[case]
    given = ["--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", "new/out"]
    refused(["test", *D3IP, *given, *arguments], message)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named_first_in_a_short_line(run, case):
    arguments, start = WRONG[case]
    code, _, error = run("test", *D3IP, "--data.path", "x.nii", *arguments)
    assert code == 2
    assert error.startswith(f"ddip-pl: error: {start}")
    assert error.count("\n") == 1
    assert len(error) < 200


@pytest.fixture
def trap(folder, monkeypatch):
    """A module that leaves a file when it is imported or called."""
    text = "from pathlib import Path\nPath('sprung').touch()\nclass Trap: ...\ndef call(*_): Path('sprung').touch()\n"
    (folder / "trap.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    yield folder / "sprung"
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize("place", ["argument", "config"])
def test_settings_cannot_name_code_of_other_packages(run, trap, case, place):
    arguments, content = STRANGE[case]
    if place == "config":
        Path("strange.yaml").write_text(content)
        arguments = ["--config", "strange.yaml"] if content else []
    if not arguments:  # help is no setting; an argument for the strategy is a name
        pytest.skip("there is no such setting")
    code, _, error = run("test", *D3IP, "--data.path", "x.nii", *arguments)
    assert code == 2
    assert not trap.exists()
    assert re.fullmatch(
        r"ddip-pl: error: .*(trap|importlib)\.\w+ is from another package; .* add --plugins .*\n", error
    )
    assert len(error) < 200


def test_plugins_are_for_the_command_line_only(run, trap):
    Path("strange.yaml").write_text("plugins: [trap]\nmodel: {estimator: {class_path: trap.Trap}}")
    code, _, error = run("test", *D3IP, "--data.path", "x.nii", "--config", "strange.yaml")
    assert (code, trap.exists()) == (2, False)
    assert "plugins" in error or "add --plugins trap" in error
    code, _, error = run("test", *D3IP, "--data.path", "x.nii", "--config", "strange.yaml", "--plugins", "trap")
    assert (code, trap.exists()) == (2, True)


@pytest.mark.parametrize("case", WITHOUT)
def test_bad_command(refused, case):
    refused(*WITHOUT[case])


def test_single_slice_for_an_estimator_that_couples_slices(run, phantom_volume, tiny_prior):
    given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", "new/out")
    code, _, error = run("predict", *MBIR, *given, "--data.slices", "1")
    line = (
        "DiffusionMBIR couples neighbouring slices but was given one; give at least 2 slices to the volume "
        "(data.slices) and to the adaptation (adaptation.slices)"
    )
    assert (code, error) == (2, f"ddip-pl: error: {line}\n")
    assert not Path("new").exists()


def test_console_of_bad_input(phantom_volume, tiny_prior):
    """Errors found only just before sampling are printed in one line too."""
    given = ("--data.path", phantom_volume, "--model.prior", tiny_prior, "--output", "out", "--data.slices", "1")
    done = process("predict", *D3IP, *given)
    assert done.returncode == 2
    line = "ddip-pl: error: the adaptation draws 2 slices, the volume has 1; lower adaptation.slices\n"
    assert done.stderr == line
    assert not Path("out").exists()
