"""BART's files: read as the values they were written from, and with the same meaning as BART itself gives them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import transform

from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, Birdcage, Measurement, NonCartesianMRI, ParallelBeamCT, Radial, RandomLines
from ddip_pl.scans.bart import read_cfl, write_bart, write_cfl
from ddip_pl.scans.counters import Counters
from ddip_pl.scans.files import read_scan, volumes
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.frame import Frame

X, Y = 24, 20


def random(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def image_of(scan: Scan) -> np.ndarray:
    """Complex image `(slices, rows, columns)` by the pseudo-inverse, in the units of the k-space."""
    measurement, frame = scan
    x = frame.unpad(measurement.operator.pseudo_inverse(measurement.y)) * np.ptp(frame.window)
    return torch.complex(x[:, 0], x[:, 1]).numpy()


def place(values: np.ndarray, *axes: int) -> np.ndarray:
    """Values with their axes at these positions of BART's 16."""
    shape = np.ones(16, int)
    shape[list(axes)] = values.shape
    return values.transpose(np.argsort(axes)).reshape(shape)


# --- without BART -----------------------------------------------------------------------------------------------


def test_values_are_kept(tmp_path):
    values = random(3, 4, 1, 2)
    write_cfl(tmp_path / "a" / "b.cfl", values)
    np.testing.assert_array_equal(read_cfl(tmp_path / "a" / "b.hdr").squeeze(), values.squeeze())
    assert (tmp_path / "a" / "b.cfl").read_bytes()[:16] == values[:2, 0, 0, 0].tobytes()  # first axis fastest


def test_slices_and_partial_fourier(tmp_path):
    """Lines that are 0 were not measured."""
    kspace = transform(random(X, Y, 3), (0, 1))
    kspace[:, :6] = 0
    write_cfl(tmp_path / "a.cfl", place(kspace, 0, 1, 13))
    scan = read_scan(tmp_path / "a.cfl")
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (0, 1)), axes=(0, 1), norm="ortho"), (0, 1))
    np.testing.assert_allclose(image_of(scan), np.moveaxis(expected, 2, 0), atol=1e-5)
    assert torch.equal(scan.measurement.operator.mask[0, 0], torch.arange(Y).expand(X, Y) >= 6)
    part = image_of(read_scan(tmp_path / "a.hdr", slices=1, first=2))
    np.testing.assert_allclose(part, image_of(scan)[2:], atol=1e-6)


def test_partitions_become_slices(tmp_path):
    image = random(X, Y, 5)
    write_cfl(tmp_path / "a.cfl", transform(image, (0, 1, 2)))
    np.testing.assert_allclose(image_of(read_scan(tmp_path / "a.cfl")), np.moveaxis(image, 2, 0), atol=1e-5)


def test_echoes_and_times_are_volumes(tmp_path):
    image = random(X, Y, 2, 3)  # two echoes at three times
    write_cfl(tmp_path / "a.cfl", place(transform(image, (0, 1)), 0, 1, 5, 10))
    found = volumes(tmp_path / "a.cfl")
    assert len(found) == 6
    for volume in found:
        scan = read_scan(tmp_path / "a.cfl", volume=volume)
        np.testing.assert_allclose(image_of(scan)[0], image[:, :, volume.contrast, volume.repetition], atol=1e-5)
        assert scan.frame.name == f"a-contrast-{volume.contrast}-repetition-{volume.repetition}"
    assert volumes(tmp_path / "a.cfl", Counters(contrast=1)) == [each for each in found if each.contrast == 1]


def test_averages(tmp_path):
    """Of the values that were measured: the second average lacks the first line."""
    kspace = transform(random(X, Y), (0, 1))
    both = np.stack([kspace, 3 * kspace], axis=2)
    both[:, 0, 1] = 0
    write_cfl(tmp_path / "a.cfl", place(both, 0, 1, 14))
    measurement, _ = read_scan(tmp_path / "a.cfl")
    expected = 2 * kspace
    expected[:, 0] /= 2
    np.testing.assert_allclose(measurement.operator.scale * measurement.y[0, 0].numpy(), expected, rtol=1e-5)


def simulated(operator, x: torch.Tensor) -> Measurement:
    return Measurement(operator(x), operator, 0.0, x)


@pytest.mark.parametrize("kind", ["lines", "spokes"])
def test_a_written_measurement_is_read_back(tmp_path, kind):
    shape = 2, 16, 16
    maps = Birdcage(4)
    operator = SENSE(shape, RandomLines(2), maps) if kind == "lines" else NonCartesianMRI(shape, Radial(20), maps)
    x = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    measurement = simulated(operator, x)
    write_bart(tmp_path / "a.cfl", measurement, Frame(window=(0.0, 5.0)))
    found, frame = read_scan(tmp_path / "a.cfl")
    unit = found.operator.scale * np.ptp(frame.window) / (5 * operator.scale)
    assert torch.allclose(unit * found.y, measurement.y, atol=1e-5)
    if kind == "lines":
        assert torch.equal(found.operator.mask.expand_as(operator.mask), operator.mask)
    else:
        torch.testing.assert_close(found.operator.trajectory, operator.trajectory, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.operator.coil_maps, operator.coil_maps.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    part = read_scan(tmp_path / "a.cfl", slices=1, first=1).measurement
    assert torch.allclose(unit / found.operator.scale * part.operator.scale * part.y, measurement.y[1:], atol=1e-5)


# --- with BART --------------------------------------------------------------------------------------------------


@pytest.fixture
def bart(tmp_path, monkeypatch):
    """Runs BART in an empty folder."""
    program = shutil.which("bart")
    if program is None:
        pytest.skip("bart is not installed (Debian: bart)")
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> None:
        subprocess.run([program, *line.split()], check=True, capture_output=True)

    return call


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_kspace_of_bart(bart):
    """Fully sampled, eight coils: the image is BART's root sum of squares."""
    bart("phantom -x64 -s8 -k scan")
    bart("fft -iu 3 scan images")
    bart("rss 8 images rss")
    expected = np.abs(read_cfl(Path("rss.cfl"))).squeeze()
    found = np.abs(image_of(read_scan("scan.cfl"))[0])
    assert alike(found[expected > 0.05 * expected.max()], expected[expected > 0.05 * expected.max()]) < 0.02


def test_trajectories_of_bart(bart):
    """BART's own non-uniform transform of an image, in BART's own trajectory."""
    bart("phantom -x32 image")
    bart("traj -r -x32 -y40 scan_traj")
    bart("nufft scan_traj image scan")
    image = np.array(read_cfl(Path("image.cfl"))).squeeze()
    measurement, frame = read_scan("scan.cfl")
    x = torch.from_numpy(np.stack([image.real, image.imag])[None])
    expected = measurement.operator(x) / np.ptp(frame.window)
    assert alike(measurement.y.numpy(), expected.numpy()) < 0.01


@pytest.mark.parametrize("kind", ["lines", "spokes"])
def test_bart_reconstructs_what_is_written(bart, kind):
    shape = 1, 32, 32
    maps = Birdcage(6)
    operator = SENSE(shape, RandomLines(2), maps) if kind == "lines" else NonCartesianMRI(shape, Radial(40), maps)
    grid = torch.linspace(-1, 1, 32)
    x = torch.zeros(1, 2, 32, 32)
    x[:, 0], x[:, 1] = torch.exp(-6 * (grid[:, None] ** 2 + (grid - 0.2) ** 2)), 0.2 * grid
    write_bart(Path("scan.cfl"), simulated(operator, x), Frame(window=(0.0, 7.0)))
    bart(f"pics -S -l2 -r0.0001 -i100 {'-t scan_traj' if kind == 'spokes' else ''} scan scan_maps image")
    found = np.array(read_cfl(Path("image.cfl"))).squeeze()
    assert alike(found, 7 * torch.complex(x[0, 0], x[0, 1]).numpy()) < 0.03


# --- bad input --------------------------------------------------------------------------------------------------


def broken(folder: Path, kind: str) -> None:
    """Files of this name that cannot be used."""
    write_cfl(folder / "a.cfl", random(8, 8, 1, 1))
    if kind == "no header":
        (folder / "a.hdr").unlink()
    elif kind == "no dimensions":
        (folder / "a.hdr").write_text("# Nothing\n8 8\n")
    elif kind == "too short":
        (folder / "a.hdr").write_text("# Dimensions\n8 9\n")
    elif kind == "maps":
        write_cfl(folder / "a.cfl", random(8, 8, 1, 1, 2))
    elif kind == "echoes":
        write_cfl(folder / "a.cfl", place(random(8, 8, 2), 0, 1, 5))
    elif kind == "partitions":
        values = random(8, 8, 4)
        values[:, 3, 2] = 0
        write_cfl(folder / "a.cfl", values)
    elif kind == "partitions and slices":
        write_cfl(folder / "a.cfl", place(random(8, 8, 4, 2), 0, 1, 2, 13))
    elif kind == "sets of maps":
        write_cfl(folder / "a_maps.cfl", random(8, 8, 1, 1, 2))
    elif kind == "trajectory":
        write_cfl(folder / "a_traj.cfl", random(3, 5, 1))
    elif kind == "three dimensions":
        write_cfl(folder / "a.cfl", random(1, 8, 1))
        write_cfl(folder / "a_traj.cfl", np.ones((3, 8, 1)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no header", "a.hdr, a.cfl: missing, damaged, or not BART's"),
        ("no dimensions", "a.hdr, a.cfl: missing, damaged, or not BART's"),
        ("too short", "dimensions [8, 9], 512 bytes in a.cfl"),
        ("maps", "lengths of BART's dimensions {4: 2}"),
        ("echoes", "2 volumes (contrast 0, ...); choose one"),
        ("partitions", "partitions are not measured alike"),
        ("partitions and slices", "with partitions and slices"),
        ("sets of maps", "expected one set (bart ecalib -m1)"),
        ("trajectory", "expected (3, samples, spokes)"),
        ("three dimensions", "a trajectory in three dimensions"),
    ],
)
def test_bad_files(tmp_path, kind, message):
    broken(tmp_path, kind)
    path = tmp_path / "a.cfl"
    with pytest.raises(InputError) as caught:
        read_scan(path)
    assert str(caught.value).startswith(f"measurement {path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_kspace_can_be_written(tmp_path):
    operator = ParallelBeamCT((1, 8, 8), 5)
    with pytest.raises(InputError, match=r"not measurements by ParallelBeamCT; give a name in \.h5"):
        write_bart(tmp_path / "a.cfl", simulated(operator, operator.zeros()), Frame())
    assert not list(tmp_path.iterdir())
