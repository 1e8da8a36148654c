"""Measured data from file to image: intensity, noise level, coil maps, and whole runs of simulate and predict."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS, make_network

from ddip_pl import cli
from ddip_pl.data import measured
from ddip_pl.data.measured import MeasuredDataModule, noise_level, scale_to_prior
from ddip_pl.data.module import Scan
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    Birdcage,
    FanBeamCT,
    LinearOperator,
    Measurement,
    NonCartesianMRI,
    ParallelBeamCT,
    Radial,
    RandomLines,
    SingleCoilMRI,
    sensitivity,
    simulate,
)
from ddip_pl.physics.sensitivity import calibrated_maps
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.scans.files import read_scan
from ddip_pl.scans.hdf5 import write_measurement
from ddip_pl.volumes.frame import Frame


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `ddip-pl` in this process; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddip-pl", *map(str, arguments)])
        capsys.readouterr()
        return cli.main(), *capsys.readouterr()

    return call


def method(name: str) -> tuple[str, str]:
    return "--config", f"{CONFIGS}/method/{name}.yaml"


def task(name: str) -> tuple[str, str]:
    return "--config", f"{CONFIGS}/task/{name}.yaml"


def volume(path: str) -> np.ndarray:
    return nib.load(Path(path) / "reconstruction.nii.gz").get_fdata()


@pytest.fixture
def kspace(phantom_volume) -> Scan:
    """Six slices of 32 x 32, four coils, all of k-space but every third line outside of the centre."""
    mask = torch.ones(32, 32)
    mask[:, :10:3] = mask[:, 22::3] = 0
    torch.manual_seed(0)
    return VolumeDataModule(str(phantom_volume), partial(SENSE, mask=mask, maps=Birdcage(4)), 0.01).simulate(32)


def save_kspace(path: Path, scan: Scan, factor: float = 1.0) -> None:
    """Save only the values, as a scanner would."""
    measurement, _ = scan
    np.save(path, factor * measurement.operator.scale * measurement.y.numpy())


# --- intensity ------------------------------------------------------------------------------------------------


def test_the_brightest_voxels_become_one(kspace):
    measurement = replace(kspace.measurement, y=700 * kspace.measurement.y, sigma_y=7.0)
    scaled, frame = scale_to_prior(Scan(measurement, replace(kspace.frame, window=(-50.0, -48.0))))
    guess = frame.unpad(scaled.operator.visible(scaled.operator.pseudo_inverse(scaled.y))).norm(dim=1)
    assert np.percentile(guess.numpy(), 99.5) == pytest.approx(1, rel=1e-5)
    low, high = frame.window
    assert low == -50
    factor = (high - low) / 2
    torch.testing.assert_close(factor * scaled.y, measurement.y)
    assert factor * scaled.sigma_y == pytest.approx(7)


def test_an_image_of_nothing(kspace):
    measurement, frame = kspace
    with pytest.raises(InputError, match="measurement phantom: the image is 0 nearly everywhere"):
        scale_to_prior(Scan(replace(measurement, y=0 * measurement.y), frame))


@pytest.mark.parametrize("name", ["l1_wavelet", "d3ip"])
def test_a_measurement_a_thousand_times_as_strong(run, kspace, name):
    """Gives an image a thousand times as bright."""
    save_kspace(Path("one.npy"), kspace)
    save_kspace(Path("thousand.npy"), kspace, 1000)
    settings: tuple[object, ...] = ()
    if name == "d3ip":
        save_prior("prior.safetensors", make_network(in_channels=2), card={}, dtype=torch.float32)
        settings = (
            "--model.prior",
            "prior.safetensors",
            "--model.sampler.steps",
            3,
            "--model.adaptation.init_args.training.steps",
            1,
        )
    for scan in "one", "thousand":
        path = ("--data.path", f"{scan}.npy", "--output", "out")
        assert run("predict", *task("measured"), *method(name), *settings, *path)[0] == 0
    one, thousand = volume("out/one"), volume("out/thousand")
    np.testing.assert_allclose(thousand, 1000 * one, rtol=0, atol=2e-3 * thousand.max())
    assert thousand.max() > 100
    first, second = (json.loads(Path(f"out/{scan}/metrics.json").read_text()) for scan in ("one", "thousand"))
    assert first["sigma_y"] == pytest.approx(second["sigma_y"], rel=1e-3)
    assert first["units"] == "k-space"


# --- noise level ----------------------------------------------------------------------------------------------


def smooth_and_sharp(channels: int, size: int) -> torch.Tensor:
    """Two slices of ellipses with edges of one pixel."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    edge = size / 2
    image = sum(
        value * torch.sigmoid(edge * (1 - torch.hypot((x - cx) / a, (y - cy) / b)))
        for value, cx, cy, a, b in [(0.8, 0, 0, 0.7, 0.9), (-0.4, 0.2, 0.1, 0.2, 0.3), (0.3, -0.3, -0.2, 0.1, 0.2)]
    )
    return torch.stack([image, image.flip(0)])[:, None].expand(-1, channels, -1, -1) / channels**0.5


SHAPE = (2, 128, 128)
NOISY = {
    "SENSE": lambda: SENSE((2, 128, 112), RandomLines(3), Birdcage(6)),
    "one coil": lambda: SingleCoilMRI(SHAPE, RandomLines(2), complex_image=True),
    "masks": lambda: SingleCoilMRI(SHAPE, torch.stack([RandomLines(2, seed=i)(128) for i in range(2)])),
    "CT": lambda: ParallelBeamCT(SHAPE, 60),
    "CT, fan beam": lambda: FanBeamCT(SHAPE, 40),
    "radial": lambda: NonCartesianMRI(SHAPE, Radial(12), Birdcage(3), density=torch.ones(12 * 256)),
}


def measured_by(operator: LinearOperator, y: torch.Tensor) -> Scan:
    return Scan(Measurement(y, operator, 0.0), Frame("some"))


@pytest.mark.parametrize("sigma_y", [0.01, 0.1])
@pytest.mark.parametrize("make", NOISY.values(), ids=NOISY.keys())
def test_noise_level(make, sigma_y):
    operator = make()
    x = smooth_and_sharp(operator.channels, 128)[..., : operator.shape[2]]
    y = simulate(x, operator, sigma_y, torch.Generator().manual_seed(0))
    assert noise_level(measured_by(operator, y)) == pytest.approx(sigma_y, rel=0.2)


def test_noise_level_of_coils_that_differ():
    """The estimate is the root mean square over the coils, which is right for the sum over all of them."""
    operator = SENSE((3, 64, 64), torch.ones(64, 64), Birdcage(4))
    levels = torch.tensor([0.01, 0.02, 0.05, 0.1]).view(-1, 1, 1)
    y = levels * torch.randn(3, 4, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = noise_level(measured_by(operator, y))
    assert found == pytest.approx(y.abs().square().mean().sqrt().item(), rel=0.1)


@pytest.mark.parametrize("make", [NOISY["CT"], NOISY["one coil"]])
def test_outliers_do_not_count(make):
    operator = make()
    y = simulate(torch.zeros(2, operator.channels, 128, 128), operator, 0.01, torch.Generator().manual_seed(0))
    hit = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.01
    spikes = operator.sampled(100 * hit.to(y.dtype))
    assert noise_level(measured_by(operator, y + spikes)) == pytest.approx(0.01, rel=0.1)


def test_no_noise_level():
    operator = ParallelBeamCT((1, 16, 16), 4, detectors=4)
    y = torch.ones(1, 1, 4, 4)
    with pytest.raises(InputError, match=r"some: the noise level cannot be estimated; give data\.sigma_y"):
        noise_level(measured_by(operator, y))


class Identity(LinearOperator):
    """An operator with only the required methods."""

    def forward(self, x):
        return x


def test_no_noise_level_by_default():
    with pytest.raises(InputError, match="some: the noise level cannot be estimated"):
        noise_level(measured_by(Identity((1, 4, 4)), torch.ones(1, 1, 4, 4)))


def test_where_the_noise_level_comes_from(kspace):
    """`sigma_y` comes from the user, otherwise from the file, otherwise from the data."""
    write_measurement("scan.h5", replace(kspace.measurement, sigma_y=0.5), kspace.frame)
    assert MeasuredDataModule("scan.h5", sigma_y=0.3).read(Path("scan.h5")).measurement.sigma_y == 0.3
    of_file, frame = MeasuredDataModule("scan.h5").read(Path("scan.h5"))
    brighter = np.ptp(kspace.frame.window) / np.ptp(frame.window)  # than the measured image, by this factor
    assert of_file.sigma_y == pytest.approx(0.5 * brighter, rel=1e-3)
    with h5py.File("scan.h5", "a") as file:
        del file.attrs["sigma_y"]
    assert MeasuredDataModule("scan.h5").read(Path("scan.h5")).measurement.sigma_y < 0.1 * brighter


def test_what_is_left_of_the_truth_is_the_noise(kspace):
    measurement, _ = kspace
    assert measurement.discrepancy(measurement.reference) == pytest.approx(1, rel=0.02)
    assert replace(measurement, sigma_y=0.005).discrepancy(measurement.reference) == pytest.approx(2, rel=0.02)


# --- coil maps ------------------------------------------------------------------------------------------------


def test_coil_maps_are_calibrated_once(kspace, monkeypatch, tmp_path):
    save_kspace(Path("scan.npy"), kspace)
    first, _ = read_scan("scan.npy")

    def refuse(*args: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(sensitivity, "espirit", refuse)
    assert torch.equal(read_scan("scan.npy").measurement.operator.maps, first.operator.maps)
    assert torch.equal(read_scan("scan.npy", slices=1, first=2).measurement.operator.maps, first.operator.maps[2:3])
    with pytest.raises(InputError, match="calibrated again"):
        read_scan("scan.npy", calibration=8)
    other = kspace.measurement.y.clone()
    other[2, 1, 16, 16] *= 1.1
    with pytest.raises(AssertionError, match="calibrated again"):
        calibrated_maps(other, 12)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(InputError, match="calibrated again"):
        read_scan("scan.npy")


def test_calibrated_maps_are_those_of_espirit(kspace):
    y = kspace.measurement.y
    expected = sensitivity.espirit(y, 12)
    torch.testing.assert_close(calibrated_maps(1e-9 * y, 12), expected, rtol=0.01, atol=0.01)


def test_the_calibration_region_is_what_is_fully_measured(kspace, monkeypatch):
    """All slices have lines 10 to 21: 12 around the centre."""
    widths = []
    monkeypatch.setattr(sensitivity, "espirit", lambda k, width: (widths.append(width), torch.ones_like(k))[1])
    save_kspace(Path("scan.npy"), kspace)
    read_scan("scan.npy")
    assert set(widths) == {12}
    read_scan("scan.npy", calibration=10)
    assert widths[-1] == 10


# --- whole runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sv_ct", "fan_beam_ct", "csmri", "radial_mri", "mri_3d"])
def test_from_volume_to_file_to_volume(run, phantom_volume, name):
    """The file gives the same reconstruction as the volume, in the same place and units."""
    size = ("--data.size", 64)
    given = (*task(name), "--data.path", phantom_volume, "--data.slices", 3, *size)
    code, out, error = run("simulate", *given, "--output", "scan.h5")
    assert (code, error) == (0, "")
    assert out == "phantom, 3 slices; measurement in scan.h5\n"
    again = run("simulate", *given, "--output", "again.h5")
    with h5py.File("scan.h5") as a, h5py.File("again.h5") as b:
        np.testing.assert_array_equal(a["data"], b["data"])
    assert again[0] == 0
    run("simulate", *given, "--seed_everything", 1, "--output", "other.h5")
    with h5py.File("scan.h5") as a, h5py.File("other.h5") as b:
        assert np.abs(a["data"][:] - b["data"][:]).max() > 0

    assert run("predict", *given, *method("fbp"), "--output", "direct")[0] == 0
    code, out, error = run("predict", *task("measured"), *method("fbp"), "--data.path", "scan.h5", "--output", "out")
    assert (code, error) == (0, "")
    direct, found = (nib.load(f"{folder}/phantom/reconstruction.nii.gz") for folder in ("direct", "out"))
    np.testing.assert_allclose(found.affine, direct.affine, atol=1e-5)
    assert np.abs(found.get_fdata() - direct.get_fdata()).max() < 2  # of 2000
    metrics = json.loads(Path("out/phantom/metrics.json").read_text())
    assert (metrics["task"], metrics["method"]) == ("measured", "fbp")
    assert not {"psnr", "ssim"} & set(metrics)
    expected = json.loads(Path("direct/phantom/metrics.json").read_text())
    assert metrics["discrepancy"] == pytest.approx(expected["discrepancy"], rel=0.01)
    assert metrics["residual"] == pytest.approx(expected["residual"], rel=0.01)


def test_a_priors_method_on_an_image_that_is_not_square(run, kspace):
    save_prior("prior.safetensors", make_network(in_channels=2), card={}, dtype=torch.float32)
    image = torch.zeros(1, 2, 30, 45)
    image[..., 8:22, 10:30] = 1
    operator = SENSE((1, 30, 45), torch.ones(30, 45), Birdcage(4))
    np.save("scan.npy", simulate(image, operator, 0.01, torch.Generator().manual_seed(0))[0].numpy())
    settings = (
        "--model.prior",
        "prior.safetensors",
        "--model.sampler.steps",
        3,
        "--model.adaptation.init_args.slices",
        1,
    )
    given = (*task("measured"), *method("d3ip"), *settings, "--data.path", "scan.npy", "--output", "out")
    code, _, error = run("predict", *given)
    assert (code, error) == (0, "")
    assert volume("out/scan").shape == (45, 30, 1)
    settings = yaml.safe_load(Path("out/scan/config.yaml").read_text())["data"]
    assert settings["class_path"] == "ddip_pl.data.measured.MeasuredDataModule"
    assert json.loads(Path("out/scan/metrics.json").read_text())["discrepancy"] < 3


def test_several_files(run, kspace):
    for name, factor in ("a", 1), ("b", 2), ("c", 3):
        save_kspace(Path(f"{name}.npy"), kspace, factor)
    paths = ("--data.path", '["a.npy", "b.npy"]')
    assert run("predict", "--data", "MeasuredDataModule", *method("fbp"), *paths, "--output", "out")[0] == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a", "b"]
    np.testing.assert_allclose(volume("out/b"), 2 * volume("out/a"), rtol=0.01, atol=1e-3)


def test_finished_volumes_are_left_out(run, kspace):
    """Unless they were made with other settings, or lack a file that is now asked for."""
    for name in "abc":
        save_kspace(Path(f"{name}.npy"), kspace)
    given = ("predict", "--data", "MeasuredDataModule", *method("fbp"), "--data.path", "?.npy", "--output", "out")

    def done(*settings: str) -> list[str]:
        code, output, error = run(*given, *settings)
        assert (code, error) == (0, "")
        return re.findall(r"^(\w): files in", output, re.MULTILINE)

    assert done() == ["a", "b", "c"]
    shutil.rmtree("out/b")
    assert done() == ["b"]
    assert done() == []
    assert done("--hdf5", "true") == ["a", "b", "c"]
    assert done("--data.sigma_y", "0.1") == ["a", "b", "c"]
    Path("out/c/metrics.json").write_text("{}")
    assert done("--data.sigma_y", "0.1") == ["c"]


def test_devices_share_the_volumes(kspace):
    """Two processes make of three volumes bit for bit what one makes of them, also if `torchrun` starts them."""
    save_prior(Path("tiny.safetensors"), make_network(in_channels=2), card={}, dtype=torch.float32)
    for number, name in enumerate("abc", 1):
        save_kspace(Path(f"{name}.npy"), kspace, number)
    prior = ("--model.prior", "tiny.safetensors", "--model.sampler.steps", "2", "--trainer.accelerator", "cpu")
    program = ("-m", "ddip_pl.cli", "predict", *task("measured"), *method("d3ip"), *prior, "--data.path", "?.npy")
    two = ("--trainer.devices", "2")
    for launcher, devices, output in (  # 20 s each while other tests run
        ((), (), "one"),
        ((), two, "two"),
        (("-m", "torch.distributed.run", "--nproc_per_node", "2"), two, "torchrun"),
    ):
        command = [sys.executable, *launcher, *program, *devices, "--output", output]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name in "abc":
        np.testing.assert_array_equal(volume(f"two/{name}"), volume(f"one/{name}"))
        np.testing.assert_array_equal(volume(f"torchrun/{name}"), volume(f"one/{name}"))


def test_fewer_volumes_than_devices(kspace):
    for name in "ab":
        save_kspace(Path(f"{name}.npy"), kspace)
    data = MeasuredDataModule("?.npy")
    data.setup("predict")
    data.trainer = SimpleNamespace(world_size=2)
    assert len(data.predict_dataloader()) == 2
    data.trainer = SimpleNamespace(world_size=3)
    with pytest.raises(InputError, match=r"3 devices for 2 volumes; .* give --trainer\.devices 2"):
        data.predict_dataloader()


def test_one_scan_is_in_memory_at_a_time(kspace, monkeypatch):
    """Every file is read before the run, to find bad ones, and again when it is reconstructed."""
    for name in "abc":
        save_kspace(Path(f"{name}.npy"), Scan(kspace.measurement[:1], kspace.frame))
    reads = []
    monkeypatch.setattr(measured, "read_scan", lambda path, *a: (reads.append(path.stem), read_scan(path, *a))[1])
    data = MeasuredDataModule(["a.npy", "b.npy", "c.npy"])
    data.setup("predict")
    assert sorted(reads) == ["a", "b", "c"]
    seen = [(frame.name, weakref.ref(measurement)) for measurement, frame in data.predict_dataloader()]
    gc.collect()
    assert [(name, scan() is not None) for name, scan in seen] == [("a", False), ("b", False), ("c", True)]
    assert reads[3:] == ["b", "c"]


# --- bad input ------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "test": (["--data.path", "scan.npy"], "no reference to compare with; use ddip-pl predict"),
    "no file": ([], "data.path"),
    "no files": (["--data.path", "[]"], "data.path has []"),
    "the same scan twice": (["--data.path", '["scan.npy", "scan.npy"]'], "data.path has ['scan', 'scan']"),
    "one of two is missing": (["--data.path", '["scan.npy", "none.npy"]'], "none.npy: no such file"),
    "negative noise": (["--data.path", "scan.npy", "--data.sigma_y", "-1"], "sigma_y is -1.0"),
    "more slices": (
        ["--data.path", "scan.npy", "--data.slices", "9"],
        "scan.npy: data.slices is 9; the file has 6",
    ),
    "narrow calibration": (["--data.path", "scan.npy", "--data.calibration", "6"], "here it is 6 (data.calibration 6)"),
    "setting of a volume": (["--data.path", "scan.npy", "--data.window", "[0, 1]"], "no setting data.window"),
    "unknown data": (["--data", "NothingDataModule"], "NothingDataModule"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(run, kspace, case):
    save_kspace(Path("scan.npy"), kspace)
    arguments, message = BAD_SETTINGS[case]
    command = "test" if case == "test" else "predict"
    code, _, error = run(command, *task("measured"), *method("fbp"), *arguments, "--output", "new/out")
    assert code == 2
    assert re.fullmatch(r"ddip-pl: error: .+\n", error)
    assert message in error
    assert not Path("new").exists()


BAD_SIMULATION = {
    "no output": ([], "output"),
    "a volume that is none": (["--data.path", "none.nii", "--output", "a.h5"], "none.nii: no such file"),
    "another file in the way": (["--output", "notes.txt"], "notes.txt exists and is not a ddip-pl measurement"),
    "pixels that are not square": (["--data.plane", "coronal", "--output", "a.h5"], "sinograms need square ones"),
    "a setting of no volume": (["--data.calibration", "24", "--output", "a.h5"], "calibration"),
    "unknown setting": (["--model.steps", "24", "--output", "a.h5"], "model.steps"),
}


@pytest.mark.parametrize("case", BAD_SIMULATION)
def test_bad_simulation(run, phantom_volume, case):
    Path("notes.txt").write_text("dear to somebody")
    arguments, message = BAD_SIMULATION[case]
    code, _, error = run("simulate", *task("sv_ct"), "--data.path", phantom_volume, "--data.size", 32, *arguments)
    assert code == 2
    assert re.fullmatch(r"ddip-pl: error: .+\n", error)
    assert message in error
    assert Path("notes.txt").read_text() == "dear to somebody"
    assert not Path("a.h5").exists()
