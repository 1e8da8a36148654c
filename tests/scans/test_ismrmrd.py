"""ISMRMRD files, written by the package `ismrmrd` itself, give the image that was measured, in its place."""

import builtins
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from helpers import CONFIGS, transform

from ddip_pl import cli
from ddip_pl.data.measured import MeasuredDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import Birdcage, NonCartesianMRI, Radial
from ddip_pl.scans.counters import Counters
from ddip_pl.scans.files import read_scan, volumes
from ddip_pl.scans.ismrmrd import read_ismrmrd
from ddip_pl.scans.scan import Scan

X, Y = 32, 20  # samples of a readout and lines, as encoded
DIRECTIONS = {"read_dir": (0.0, 1.0, 0.0), "phase_dir": (0.6, 0.0, 0.8), "slice_dir": (0.8, 0.0, -0.6)}


def header(trajectory: str = "cartesian", z: int = 1, y: int = Y, fov_z: float = 5.0, more: str = "") -> str:
    """Readout oversampled twice: 32 samples of 400 mm, of which 200 are wanted; 20 lines of 100 mm."""
    return f"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace><matrixSize><x>{X}</x><y>{y}</y><z>{z}</z></matrixSize>
      <fieldOfView_mm><x>400</x><y>{100 if y == Y else 400}</y><z>{fov_z}</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>16</x><y>{y}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>200</x><y>{100 if y == Y else 200}</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{y - 1}</maximum><center>{y // 2}</center>
      </kspace_encoding_step_1></encodingLimits>
    <trajectory>{trajectory}</trajectory>{more}
  </encoding>
</ismrmrdHeader>"""


EMBEDDED = """<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>embedded</calibrationMode></parallelImaging>"""


def images(slices: int, height: int = X, width: int = Y) -> np.ndarray:
    """Complex images `(slices, height, width)`, all different and not symmetric, in the middle half of the readout."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((slices, height, width)) + 1j * rng.standard_normal((slices, height, width))
    image[:, : height // 4] = image[:, 3 * height // 4 :] = 0
    return image


def line(samples: np.ndarray, step: int, plane: int = 0, partition: int = 0, **head: object) -> ismrmrd.Acquisition:
    """A readout `(coils, samples)`."""
    settings = {"center_sample": samples.shape[1] // 2, "position": (7.0, -3.0, 11.0)} | DIRECTIONS | head
    trajectory, flags = settings.pop("trajectory", None), settings.pop("flags", ())
    counters = settings.pop("counters", {})
    one = ismrmrd.Acquisition.from_array(samples.astype(np.complex64), trajectory, **settings)
    one.idx.kspace_encode_step_1, one.idx.kspace_encode_step_2, one.idx.slice = step, partition, plane
    for name, value in counters.items():
        setattr(one.idx, name, value)
    for flag in flags:
        one.set_flag(getattr(ismrmrd, f"ACQ_IS_{flag}"))
    return one


def readouts(kspace: np.ndarray, **head: object) -> list[ismrmrd.Acquisition]:
    """All lines of `(slices, coils, readout, lines)`; slices 6 mm apart along `slice_dir`."""
    normal = np.array(DIRECTIONS["slice_dir"])
    places = {i: {"position": tuple(np.array([7, -3, 11]) + 6 * i * normal)} for i in range(len(kspace))}
    return [
        line(plane[..., step], step, i, **(places[i] | head))
        for i, plane in enumerate(kspace)
        for step in range(kspace.shape[3])
    ]


def save(path: Path, lines: list[ismrmrd.Acquisition], xml: str | None = None) -> Path:
    with ismrmrd.Dataset(str(path), "dataset") as dataset:
        dataset.write_xml_header((header() if xml is None else xml).encode())
        for one in lines:
            dataset.append_acquisition(one)
    return path


def image_of(scan: Scan) -> np.ndarray:
    """Complex image `(slices, rows, columns)` by the pseudo-inverse, in the units of the k-space."""
    measurement, frame = scan
    images = measurement.operator.visible(measurement.operator.pseudo_inverse(measurement.y))
    x = frame.unpad(images) * np.ptp(frame.window)
    return torch.complex(x[:, 0], x[:, 1]).numpy()


def test_one_coil_several_slices(tmp_path):
    truth = images(3)
    _, frame = scan = read_scan(save(tmp_path / "scan.h5", readouts(transform(truth)[:, None])))
    np.testing.assert_allclose(image_of(scan), truth[:, 8:24], atol=1e-5)
    assert (frame.name, frame.units) == ("scan", "k-space")
    part = read_scan(tmp_path / "scan.h5", slices=1, first=2)
    np.testing.assert_allclose(image_of(part), truth[2:, 8:24], atol=1e-5)


def test_where_the_slices_lie(tmp_path):
    """The affine of the header's geometry, turned from LPS+ to RAS+."""
    path = save(tmp_path / "scan.h5", readouts(transform(images(3))[:, None]))
    _, frame = read_scan(path)
    read, phase, normal = (np.array(DIRECTIONS[name]) for name in ("read_dir", "phase_dir", "slice_dir"))
    for column, row, plane in (0, 0, 0), (3, 5, 2), (10, 8, 1):
        place = (7, -3, 11) + 6 * plane * normal + 12.5 * (row - 8) * read + 5 * (column - 10) * phase
        np.testing.assert_allclose(
            frame.affine @ [column, row, plane, 1], [-place[0], -place[1], place[2], 1], atol=1e-4
        )
    part = read_scan(path, slices=2, first=1)
    np.testing.assert_allclose(part.frame.affine @ [3, 5, 1, 1], frame.affine @ [3, 5, 2, 1], atol=1e-4)


def test_slices_are_sorted_by_their_place(tmp_path):
    """Whatever the order of acquisition and of the counter."""
    truth = images(3)
    kspace, normal = transform(truth)[:, None], np.array(DIRECTIONS["slice_dir"])
    lines = [
        line(kspace[i, ..., step], step, counter, position=tuple(6 * i * normal))
        for counter, i in enumerate((2, 0, 1))
        for step in range(Y)
    ]
    np.testing.assert_allclose(image_of(read_scan(save(tmp_path / "a.h5", lines))), truth[:, 8:24], atol=1e-5)


def test_without_directions_the_slices_keep_their_order(tmp_path):
    nowhere = dict.fromkeys(DIRECTIONS, (0.0, 0.0, 0.0)) | {"position": (0.0, 0.0, 0.0)}
    _, frame = scan = read_scan(save(tmp_path / "a.h5", readouts(transform(images(2))[:, None], **nowhere)))
    np.testing.assert_allclose(image_of(scan), images(2)[:, 8:24], atol=1e-5)
    np.testing.assert_allclose(frame.affine[:3, :3], np.diag([5, -12.5, 5]), atol=1e-6)


def test_several_coils(tmp_path):
    """Coil maps are estimated from the centre; outside it every second line is missing."""
    y, x = np.linspace(-1, 1, 64)[:, None], np.linspace(-1, 1, 48)
    truth = np.exp(-((2 * x**2 + 5 * y**2) ** 2)) * (1 + 0.4 * np.sin(9 * x)) * np.exp(1j * (0.3 + x))
    maps = Birdcage(4)((64, 48)).numpy()[0]
    kspace = transform(maps * truth)
    xml = header().replace(f"<x>{X}</x><y>{Y}</y>", "<x>64</x><y>48</y>").replace("<center>10", "<center>24")
    measured = [line(kspace[..., i], i) for i in range(48) if i % 2 == 0 or 14 <= i < 34]
    measurement, _ = scan = read_scan(save(tmp_path / "scan.h5", measured, xml))
    mask = measurement.operator.mask[0, 0]
    assert torch.equal(mask[0], torch.tensor([i % 2 == 0 or 14 <= i < 34 for i in range(48)]))
    expected, found = np.abs(truth[16:48]), np.abs(image_of(scan)[0])
    assert np.abs(found - expected)[expected > 0.3].max() < 0.03
    assert np.isnan(measurement.sigma_y)


def test_readouts_that_are_no_image(tmp_path):
    truth = images(1)
    lines = readouts(transform(truth)[:, None])
    rubbish = np.full((1, X), 1e3 + 0j)
    flags = "NOISE_MEASUREMENT", "PARALLEL_CALIBRATION", "NAVIGATION_DATA", "PHASECORR_DATA", "DUMMYSCAN_DATA"
    lines[3:3] = [line(rubbish, 5, flags=[flag]) for flag in flags]
    lines.insert(0, line(np.full((3, 7), 1e3), 0, flags=["NOISE_MEASUREMENT"]))
    for one in lines[-4:]:
        one.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    np.testing.assert_allclose(image_of(read_scan(save(tmp_path / "a.h5", lines))), truth[:, 8:24], atol=1e-5)


MIXING = np.array([[1.0, 0, 0], [0.8j, 0.5, 0], [0.3, -0.4, 2.0]])  # of the noise of three coils
LEVEL = np.sqrt((np.abs(MIXING) ** 2).sum() / 3)  # root mean square


def noisy_scan(scale: float = 1.0, averages: int = 1, **head: object) -> list[ismrmrd.Acquisition]:
    """Nothing but noise, with the covariance `MIXING MIXING^H`, and a noise scan that is `scale` times as strong."""
    rng = np.random.default_rng(3)

    def noise(samples: int) -> np.ndarray:
        white = rng.standard_normal((3, samples)) + 1j * rng.standard_normal((3, samples))
        return MIXING @ white / np.sqrt(2)

    lines = [line(noise(X), step, sample_time_us=4.0) for step in range(Y) for _ in range(averages)]
    return [*(line(scale * noise(2000), 0, flags=["NOISE_MEASUREMENT"], **head) for _ in range(2)), *lines]


@pytest.mark.parametrize(
    ("scale", "dwell", "ratio"), [(1, 4.0, 1), (1, 0.0, 1), (0.5, 16.0, 1), (2, 1.0, 1), (np.sqrt(0.8), 4.0, 0.8)]
)
def test_noise_scan(tmp_path, scale, dwell, ratio):
    """The coils are whitened. The variance of the noise is proportional to the bandwidth."""
    given = f"""<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>{ratio}</relativeReceiverNoiseBandwidth>
</acquisitionSystemInformation><experimentalConditions>"""
    xml = header().replace("<experimentalConditions>", given, 1)
    path = save(tmp_path / "a.h5", noisy_scan(scale, sample_time_us=dwell), xml)
    with h5py.File(path) as file:
        recording = read_ismrmrd(file, None, None)
    assert recording.sigma_y == pytest.approx(LEVEL, rel=0.02)
    values = np.moveaxis(recording.data, 1, 0).reshape(3, -1)
    covariance = values @ values.conj().T / values.shape[1]
    np.testing.assert_allclose(covariance, LEVEL**2 * np.eye(3), atol=0.15 * LEVEL**2)


def test_averages_have_less_noise(tmp_path):
    with h5py.File(save(tmp_path / "a.h5", noisy_scan(averages=4))) as file:
        recording = read_ismrmrd(file, None, None)
    assert recording.sigma_y == pytest.approx(LEVEL / 2, rel=0.02)
    assert np.sqrt((np.abs(recording.data) ** 2).mean()) == pytest.approx(LEVEL / 2, rel=0.05)


def test_a_noise_scan_without_noise_is_not_used(tmp_path, caplog):
    """A coil that is switched off; two coils that are the same one; too few samples."""
    for coil, samples in (np.diag([1, 1, 0]), 100), (np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]]), 100), (np.eye(3), 3):
        lines = noisy_scan()[2:]
        values = coil @ np.random.default_rng(0).standard_normal((3, samples))
        lines.append(line(values, 0, flags=["NOISE_MEASUREMENT"]))
        caplog.clear()
        with h5py.File(save(tmp_path / f"{samples}-{coil.sum()}.h5", lines)) as file:
            recording = read_ismrmrd(file, None, None)
        assert np.isnan(recording.sigma_y)
        assert f"the noise readouts are not used: {samples} samples of 3 coils" in caplog.text


def test_calibration_that_is_part_of_the_image(tmp_path):
    lines = readouts(transform(images(1))[:, None])
    for one in lines[8:12]:
        one.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    apart = read_scan(save(tmp_path / "apart.h5", lines)).measurement.operator.mask[0, 0, 0]
    embedded = read_scan(save(tmp_path / "embedded.h5", lines, header(more=EMBEDDED))).measurement.operator.mask[
        0, 0, 0
    ]
    assert [int(mask.sum()) for mask in (apart, embedded)] == [Y - 4, Y]
    assert not apart[8:12].any()


def test_averages(tmp_path):
    """One half of the lines is measured twice, the other three times."""
    truth = images(1)
    lines = readouts(transform(truth)[:, None])
    for factor, average, chosen in ((3.0, 1, slice(None)), (-1.0, 2, slice(10, None))):
        lines += [line(factor * one.data, one.idx.kspace_encode_step_1, counters={"average": average})
                  for one in lines[:Y][chosen]]  # fmt: skip
    expected = transform(truth)[0] * np.where(np.arange(Y) < 10, 2, 1)
    found = read_scan(save(tmp_path / "a.h5", lines))
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(expected), norm="ortho"))
    np.testing.assert_allclose(image_of(found)[0], expected[8:24], atol=1e-5)


# --- several volumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter", ["contrast", "phase", "repetition", "set"])
def test_every_volume_is_read_by_its_counters(tmp_path, counter):
    truth = np.stack([images(2), 2j * images(2)[::-1], images(2) - 3])
    truth[:, :, : X // 4] = truth[:, :, 3 * X // 4 :] = 0
    kspace = transform(truth)
    lines = [line(kspace[i, plane, None, :, step], step, plane, counters={counter: 2 * i})
             for i in range(3) for step in range(Y) for plane in range(2)]  # fmt: skip
    path = save(tmp_path / "a.h5", lines)
    found = volumes(path)
    assert found == [Counters(**{counter: value}) for value in (0, 2, 4)]
    for i, one in enumerate(found):
        scan = read_scan(path, volume=one)
        np.testing.assert_allclose(image_of(scan), truth[i, :, 8:24], atol=1e-5)
        assert scan.frame.name == f"a-{counter}-{2 * i}"
    with pytest.raises(InputError, match=f"no volume with {counter} 1; the file has .*{counter} 4"):
        volumes(path, Counters(**{counter: 1}))
    module = MeasuredDataModule(str(path), sigma_y=0.1, volume=Counters(**{counter: 4}))
    module.setup("predict")
    assert [frame.name for _, frame in module.scans] == [f"a-{counter}-4"]
    module = MeasuredDataModule(str(path), sigma_y=0.1)
    module.setup("predict")
    assert [frame.name for _, frame in module.scans] == [f"a-{counter}-{value}" for value in (0, 2, 4)]


def test_formats_with_one_volume_have_no_counters(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 8, 8), np.complex64))
    assert volumes(tmp_path / "a.npy") == [Counters()]
    with pytest.raises(InputError, match=r"a\.npy: no volume with repetition 1"):
        volumes(tmp_path / "a.npy", Counters(repetition=1))


HEAD = (64, 48)  # readout and lines of a smooth image seen by four coils
HEAD_XML = header().replace(f"<x>{X}</x><y>{Y}</y>", "<x>64</x><y>48</y>").replace("<center>10", "<center>24")


def head_kspace() -> tuple[np.ndarray, np.ndarray]:
    """Magnitude of the image within its field of view, and k-space `(coils, readout, lines)`."""
    y, x = np.linspace(-1, 1, HEAD[0])[:, None], np.linspace(-1, 1, HEAD[1])
    truth = np.exp(-((2 * x**2 + 5 * y**2) ** 2)) * (1 + 0.4 * np.sin(9 * x)) * np.exp(1j * (0.3 + x))
    return np.abs(truth[16:48]), transform(Birdcage(4)(HEAD).numpy()[0] * truth)


def close(scan: Scan, expected: np.ndarray, tolerance: float = 0.04) -> bool:
    """Whether the image is right where there is one."""
    return bool(np.abs(np.abs(image_of(scan)[0]) - expected)[expected > 0.3].max() < tolerance)


def test_calibration_lines_apart_from_the_image(tmp_path):
    """With another intensity and fewer samples, in the first repetition only; the image lacks every second line."""
    expected, kspace = head_kspace()
    lines = [line(kspace[..., step], step, counters={"repetition": i}) for i in range(2) for step in range(0, 48, 2)]
    centre = [line(3 * kspace[:, 8:56, step], step, flags=["PARALLEL_CALIBRATION"]) for step in range(12, 36)]
    path = save(tmp_path / "a.h5", lines + centre, HEAD_XML)
    for repetition in range(2):
        scan = read_scan(path, volume=Counters(repetition=repetition))
        assert int(scan.measurement.operator.mask[0, 0, 0].sum()) == 24
        assert close(scan, expected)
    with pytest.raises(InputError, match="coil maps are estimated from a fully measured k-space centre"):
        read_scan(save(tmp_path / "b.h5", lines[:24], HEAD_XML))


def test_repetitions_that_together_measure_every_line_give_the_coil_maps(tmp_path):
    expected, kspace = head_kspace()
    lines = [line(kspace[..., step], step, counters={"repetition": i}) for i in range(2) for step in range(i, 48, 2)]
    path = save(tmp_path / "a.h5", lines, HEAD_XML)
    maps = []
    for repetition in range(2):
        scan = read_scan(path, volume=Counters(repetition=repetition))
        assert int(scan.measurement.operator.mask[0, 0, 0].sum()) == 24
        assert close(scan, expected)
        maps.append(scan.measurement.operator.coil_maps)
    assert torch.allclose(maps[0], maps[1], atol=1e-5)


def test_calibration_of_a_slab(tmp_path):
    """Slices across the readout; the coil maps come from lines and partitions that are not part of the image."""
    rng = np.random.default_rng(2)
    y, x = np.linspace(-1, 1, 32)[:, None], np.linspace(-1, 1, 32)
    plane = np.exp(-((2 * x**2 + 2 * y**2) ** 2)) * (1 + 0.4 * np.sin(9 * x))
    truth = np.where(np.abs(np.arange(X) - 16) < 8, 1.0, 0)[:, None, None] * plane
    kspace = transform(Birdcage(4)((32, 32)).numpy()[0][:, None] * truth, (1, 2, 3))
    image = np.argwhere(rng.random((32, 32)) < 0.6)
    centre = [(i, p) for i in range(10, 22) for p in range(10, 22)]
    lines = [line(kspace[..., i, p], i, partition=p) for i, p in image]
    lines += [line(2 * kspace[..., i, p], i, partition=p, flags=["PARALLEL_CALIBRATION"]) for i, p in centre]
    xml = header(z=32, fov_z=160.0, y=32).replace("<z>5</z>", "<z>160</z>").replace("<y>200</y>", "<y>400</y>")
    scan = read_scan(save(tmp_path / "a.h5", lines, xml), slices=2)
    found = np.abs(image_of(scan))[0]
    assert np.abs(found - plane)[plane > 0.3].max() < 0.1


@pytest.mark.parametrize("options", [["-a", 1], ["-a", 2], ["-a", 3, "-w", 24], ["-a", 4], ["-a", 4, "-r", 2]])
def test_files_of_the_official_generator(tmp_path, options):
    """Fully sampled and accelerated, with a noise scan, with and without calibration lines: close to its phantom."""
    generator = shutil.which("ismrmrd_generate_cartesian_shepp_logan")
    if generator is None:
        pytest.skip("ismrmrd_generate_cartesian_shepp_logan is not installed (Debian: ismrmrd-tools)")
    path = tmp_path / "a.h5"
    command = [generator, "-m", 64, "-c", 8, "-O", 2, "-n", 0.01, "-C", "-o", path, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with h5py.File(path) as file:
        phantom = file["dataset/phantom"][0]
    expected = np.hypot(phantom["real"], phantom["imag"])
    found = volumes(path)
    assert len(found) == options[1] * (options[3] if "-r" in options else 1)
    for one in (found[0], found[-1]):
        scan = read_scan(path, volume=one)
        operator, unit = scan.measurement.operator, np.ptp(scan.frame.window) * scan.measurement.operator.scale
        assert scan.measurement.sigma_y * unit == pytest.approx(0.01 * np.sqrt(2), rel=0.1)
        image = np.abs(image_of(scan)[0]).T
        factor = (image * expected).sum() / (image**2).sum()
        assert np.linalg.norm(factor * image - expected) / np.linalg.norm(expected) < (
            0.15 if options[1] < 4 else 0.3
        ), operator


# --- partial measurements ---------------------------------------------------------------------------------------


def test_a_partial_echo_with_samples_to_discard(tmp_path):
    """The first 6 of 32 samples are missing, the next 2 and the last one are discarded."""
    kspace = transform(images(1))[:, None]
    spoilt = kspace.copy()
    spoilt[:, :, 6:8] = spoilt[:, :, 31:] = 1e3
    lines = [line(one[..., step], step, center_sample=10, discard_pre=2, discard_post=1)
             for one in spoilt[:, :, 6:] for step in range(Y)]  # fmt: skip
    measurement, frame = read_scan(save(tmp_path / "a.h5", lines))
    assert frame.margin == (8, 8, 0, 0)
    measured = torch.zeros(X, dtype=torch.bool)
    measured[8:31] = True
    assert torch.equal(measurement.operator.mask[0, 0], measured[:, None].expand(-1, Y))
    found = (measurement.operator.scale * measurement.y).numpy()
    np.testing.assert_allclose(found[..., 8:31, :], kspace[..., 8:31, :], atol=1e-5)


def test_partial_fourier(tmp_path):
    """The first four lines are missing, and the counter starts after them."""
    kspace = transform(images(1))[0]
    lines = [line(kspace[None, :, step], step - 4) for step in range(4, Y)]
    path = save(tmp_path / "a.h5", lines, header().replace("<center>10", "<center>6"))
    kspace[:, :4] = 0
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace), norm="ortho"))
    np.testing.assert_allclose(image_of(read_scan(path))[0], expected[8:24], atol=1e-5)


@pytest.mark.parametrize("chosen", [{}, {"slices": 2, "first": 1}])
def test_a_complete_3d_slab_becomes_slices(tmp_path, chosen):
    """Eight partitions of 5 mm, of which the header asks for four."""
    truth = images(8)
    kspace = transform(truth, (0, 1, 2))
    lines = [line(kspace[None, p, :, step], step, partition=p) for p in range(8) for step in range(Y) if step != 3]
    xml = header(z=8, fov_z=40.0).replace("<z>5</z>", "<z>20</z>")
    _, frame = scan = read_scan(save(tmp_path / "a.h5", lines, xml), **chosen)
    expected = transform(truth)  # line 3 is missing
    expected[..., 3] = 0
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(expected, (1, 2)), norm="ortho"), (1, 2))
    first, count = 2 + chosen.get("first", 0), chosen.get("slices", 4)
    np.testing.assert_allclose(image_of(scan), expected[first : first + count, 8:24], atol=1e-5)
    normal = np.array(DIRECTIONS["slice_dir"])
    place = ((7, -3, 11) + 5 * (first - 4) * normal) * (-1, -1, 1)
    np.testing.assert_allclose((frame.affine @ [10, 8, 0, 1])[:3], place, atol=1e-4)


def test_a_slab_with_undersampled_partitions_becomes_slices_across_the_readout(tmp_path):
    """Lines and partitions of a random pattern; eight partitions of 5 mm, of which the header asks for one."""
    truth = np.moveaxis(images(8), 0, 2)  # x, y, z
    measured = np.random.default_rng(1).random((Y, 8)) < 0.5
    kspace = transform(truth, (0, 1, 2)) * measured
    lines = [line(kspace[None, :, i, p], i, partition=p) for i, p in np.argwhere(measured)]
    path = save(tmp_path / "a.h5", lines, header(z=8, fov_z=40.0))
    measurement, _ = scan = read_scan(path)
    assert torch.equal(measurement.operator.mask[0, 0], torch.from_numpy(measured))
    expected = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace), norm="ortho"))[8:24, :, 4:5]
    np.testing.assert_allclose(image_of(scan), expected, atol=1e-5)
    part = read_scan(path, slices=3, first=2)
    np.testing.assert_allclose(image_of(part), expected[2:5], atol=1e-5)
    read, phase, normal = (np.array(DIRECTIONS[name]) for name in ("read_dir", "phase_dir", "slice_dir"))
    for column, row, plane in (0, 0, 0), (0, 7, 2), (0, 13, 1):
        x, y, z = plane + 2 + 8, row, column + 4
        place = (7, -3, 11) + 12.5 * (x - 16) * read + 5 * (y - 10) * phase + 5 * (z - 4) * normal
        np.testing.assert_allclose(
            part.frame.affine @ [column, row, plane, 1], [-place[0], -place[1], place[2], 1], atol=1e-4
        )


@pytest.mark.parametrize("unit", [1 / (2 * np.pi), X / (2 * np.pi)], ids=["per pixel", "per field of view"])
def test_radial(tmp_path, unit):
    """Two slices, six spokes, positions in either unit; the header asks for half the field of view."""
    positions = Radial(6)(X)
    operator = NonCartesianMRI((2, X, X), positions)
    truth = images(2, X, X)
    truth[..., : X // 4] = truth[..., 3 * X // 4 :] = 0
    pairs = torch.from_numpy(np.stack([truth.real, truth.imag], axis=1)).float()
    spokes = (operator.scale * operator(pairs)).view(2, 1, 6, 2 * X).numpy()
    paths = (positions.view(6, 2 * X, 2) * unit).numpy().astype(np.float32)
    order = [(plane, i) for plane in range(2) for i in (3, 4, 5, 0, 1, 2)]
    normal = np.array(DIRECTIONS["slice_dir"])
    lines = [line(spokes[plane, :, i], i, plane, trajectory=paths[i], position=tuple(6 * plane * normal))
             for plane, i in order]  # fmt: skip
    measurement, frame = read_scan(save(tmp_path / "a.h5", lines, header("radial", y=X)))
    assert isinstance(measurement.operator, NonCartesianMRI)
    torch.testing.assert_close(measurement.operator.trajectory, positions.T.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measurement.operator.scale * measurement.y, operator.scale * operator(pairs))
    assert frame.margin == (8, 8, 8, 8)
    residual = measurement.residual(pairs).norm() / measurement.y.norm()
    assert residual < 1e-3
    np.testing.assert_allclose(frame.affine @ [8, 8, 1, 1], [*(6 * normal * (-1, -1, 1)), 1], atol=1e-4)


# --- bad input ------------------------------------------------------------------------------------------------


def changed(**head: object) -> list[ismrmrd.Acquisition]:
    return readouts(np.ones((2, 1, X, Y)), **head)


def radial(slices: int = 1, **head: object) -> list[ismrmrd.Acquisition]:
    return [line(np.ones((1, 8)), i, plane, **head) for plane in range(slices) for i in range(3)]


PATH = np.linspace(-0.5, 0.5, 16, dtype=np.float32).reshape(8, 2)
# Readouts, header, and what the error line must contain.
BAD = {
    "noise only": (lambda: changed(flags=["NOISE_MEASUREMENT"]), None, "no image readouts"),
    "EPI": (lambda: changed(flags=["REVERSE"]), None, "readouts in both directions (EPI)"),
    **{
        counter: (
            lambda counter=counter: [*changed(), line(np.ones((1, X)), 0, counters={counter: 1})], None,
            f"2 volumes ({counter} 0, ...); choose one (data.volume)",
        ) for counter in ("contrast", "phase", "repetition", "set")
    },
    "coils": (lambda: [*changed(), line(np.ones((2, X)), 0)], None, "readouts of [1, 2] coils"),
    "a line outside": (lambda: [line(np.ones((1, X)), Y)], None, "line 20, partition 0, 32 samples with sample 16"),
    "a line before": (
        lambda: [line(np.ones((1, X)), 1)], header().replace("<center>10", "<center>12"), "line 1, partition 0",
    ),
    "samples outside": (lambda: changed(center_sample=0), None, "32 samples with sample 0 in the centre"),
    "samples before": (lambda: changed(center_sample=20), None, "32 samples with sample 20 in the centre"),
    "partition outside": (lambda: [line(np.ones((1, X)), 1, partition=1)], None, "line 1, partition 1"),
    "all discarded": (lambda: changed(discard_pre=X), None, "32 samples with sample 16"),
    "skew": (lambda: changed(read_dir=(0.6, 0.8, 0.0)), None, "or are not perpendicular"),
    "slices that are turned": (
        lambda: [*changed(), line(np.ones((1, X)), 0, 2, read_dir=DIRECTIONS["phase_dir"],
                                  phase_dir=DIRECTIONS["read_dir"])], None, "differ between slices",
    ),
    "a gap": (
        lambda: [*changed(), line(np.ones((1, X)), 0, 2, position=(7 + 0.8 * 30, -3.0, 11 - 0.6 * 30))], None,
        "mm along slice_dir; expected even spacing",
    ),
    "two slabs": (lambda: changed(), header(z=4), "2 slabs of 4 partitions, cartesian"),
    "partitions missing": (
        lambda: [line(np.ones((1, X - 2)), i, partition=p, center_sample=14) for p in range(4) for i in range(Y - p)],
        header(z=4), "some lines are not measured in all partitions, and some echoes are partial",
    ),
    "stack of stars": (lambda: radial(trajectory=PATH), header("radial", z=4, y=X), "1 slabs of 4 partitions, radial"),
    "no trajectory": (lambda: radial(), header("radial", y=X), "a radial scan without sample positions"),
    "oblong": (lambda: radial(trajectory=PATH), header("spiral"), "encoded matrix (32, 20, 1)"),
    "trajectory too far": (
        lambda: radial(trajectory=40 * PATH), header("radial", y=X), "pixels of 12.5 mm hold at most 0.04 / mm",
    ),
    "trajectories": (
        lambda: [*radial(trajectory=PATH), *(line(np.ones((1, 8)), i, 1, trajectory=-PATH) for i in range(3))],
        header("radial", y=X), "the trajectories of the slices differ",
    ),
    "nan": (lambda: [*changed(), line(np.full((1, X), np.nan), 3)], None, "NaN or infinite values in slice 0"),
    "header": (lambda: changed(), "<xml>", "not an ISMRMRD header"),
    "two encodings": (
        lambda: changed(), header().replace("</encoding>", "</encoding><encoding></encoding>"), "(2 encodings)",
    ),
    "no field of view": (lambda: changed(), header().replace("<x>400</x>", "<x>0</x>"), "expected positive ones"),
}  # fmt: skip


@pytest.fixture
def refused():
    """Checks that a file is refused in one line that names it."""

    def check(path: Path, message: str) -> None:
        with pytest.raises(InputError) as caught:
            read_scan(path)
        assert re.fullmatch(r".+", str(caught.value))
        assert str(caught.value).startswith(f"measurement {path}: ")
        assert message in str(caught.value)

    return check


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, refused, case):
    lines, xml, message = BAD[case]
    refused(save(tmp_path / "bad.h5", lines(), xml), message)


def test_a_bad_file_on_the_command_line(tmp_path, monkeypatch, capsys):
    """One line, exit code 2, and nothing written."""
    folder, (lines, xml, message) = tmp_path / "empty", BAD["header"]
    folder.mkdir()
    path = save(tmp_path / "bad.h5", lines(), xml)
    monkeypatch.chdir(folder)
    configs = ["--config", f"{CONFIGS}/task/measured.yaml", "--config", f"{CONFIGS}/method/fbp.yaml"]
    monkeypatch.setattr(sys, "argv", ["ddip-pl", "predict", *configs, "--data.path", str(path)])
    assert cli.main() == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"ddip-pl: error: .+\n", error)
    assert f"measurement {path}: " in error
    assert message in error
    assert not list(folder.iterdir())


def test_two_scans_in_a_file(tmp_path, refused):
    path = save(tmp_path / "bad.h5", changed())
    with h5py.File(path, "a") as file:
        file.copy("dataset", "more")
    refused(path, "several scans (dataset, more)")


def test_no_acquisitions(tmp_path, refused):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["dataset/xml"], file["dataset/data"] = [header()], np.zeros(3)
    refused(tmp_path / "bad.h5", "damaged, or not ISMRMRD raw data")


def test_without_the_package(tmp_path, refused, monkeypatch):
    path, original = save(tmp_path / "bad.h5", changed()), builtins.__import__

    def without(name: str, *args: object, **settings: object) -> object:
        if name.partition(".")[0] == "ismrmrd":
            raise ImportError(name)
        return original(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(path, "ISMRMRD files need a package that is missing; pip install 'ddip-pl[ismrmrd]'")


def test_more_slices_than_there_are(tmp_path):
    path = save(tmp_path / "a.h5", changed())
    with pytest.raises(InputError, match=re.escape(f"measurement {path}: data.slices is 3; the file has 2 slices")):
        read_scan(path, slices=3)
