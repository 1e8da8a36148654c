"""Siemens raw data, written by the package `twixtools` itself, give the image that was measured, in its place."""

import builtins
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import transform
from twix import COILS, NORMAL, PHASE, POSITION, READ, X, Y, Z, block, header, write

from ddip_pl.errors import InputError
from ddip_pl.physics.fft import ifft
from ddip_pl.scans.counters import ANY, Counters
from ddip_pl.scans.files import read_recording, read_scan, volumes
from ddip_pl.scans.recording import Recording


def read(path: Path, volume: Counters = ANY) -> Recording:
    return read_recording(path, None, None, volume)


def images(slices: int) -> np.ndarray:
    """Complex coil images `(slices, coils, x, y)` in the middle half of the readout."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((slices, COILS, X, Y)) + 1j * rng.standard_normal((slices, COILS, X, Y))
    image[:, :, : X // 4] = image[:, :, 3 * X // 4 :] = 0
    return image


def test_slices_lie_where_they_were_measured(tmp_path: Path) -> None:
    image = images(3)
    kspace = transform(image)
    order = [2, 0, 1]  # slices are measured in any order
    blocks = [block(kspace[s, :, :, y], Lin=y, Sli=s) for s in order for y in range(Y)]
    blocks.insert(0, block(kspace[0, :, :, 0], ("PHASCOR",), Lin=3))
    found = read(write(tmp_path / "meas_one.dat", (blocks, header())))
    assert (found.name, found.data.shape) == ("meas_one", (3, 2, 16, 20))
    assert found.description["field_of_view"] == (200, 100)
    np.testing.assert_allclose(ifft(found.data, (2, 3)), image[:, :, 8:24], atol=1e-5)
    # The pixel n // 2 of each slice is at its position, in RAS+ coordinates.
    assert found.affine is not None
    centre = found.affine @ [Y // 2, 16 // 2, 1, 1]
    np.testing.assert_allclose(centre[:3], (np.array(POSITION) + 6 * NORMAL) * [-1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(found.affine[:3, :2].T, [PHASE * [-5, -5, 5], READ * [-12.5, -12.5, 12.5]], atol=1e-4)


def test_echo_and_lines_of_partial_fourier_scans(tmp_path: Path) -> None:
    image = images(1)
    kspace = transform(image)[0]
    blocks = [block(kspace[:, 6:, y], centre=X // 2 - 6, Lin=y) for y in range(5, Y)]
    found = read(write(tmp_path / "meas.dat", (blocks, header())))
    expected = np.zeros((COILS, X, Y), complex)
    expected[:, 6:, 5:] = kspace[:, 6:, 5:]
    assert found.margin == (8, 8, 0, 0)  # an incomplete readout cannot be cropped before the reconstruction
    np.testing.assert_allclose(found.data[0], expected, atol=1e-5)
    np.testing.assert_array_equal(found.description["mask"][0], expected[0] != 0)


def test_slab_and_its_volumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.standard_normal((2, COILS, X, Y, Z)) + 0j
    image[:, :, : X // 4] = image[:, :, 3 * X // 4 :] = 0
    kspace = transform(image, (-3, -2, -1))
    blocks = [block(kspace[e, :, :, y, z], Lin=y, Par=z, Eco=e) for e in range(2) for y in range(Y) for z in range(Z)]
    path = write(tmp_path / "meas.dat", (blocks, header(Z)))
    assert volumes(path) == [Counters(contrast=0), Counters(contrast=1)]
    found = read(path, Counters(contrast=1))
    assert found.name == "meas-contrast-1"
    np.testing.assert_allclose(ifft(found.data, (2, 3)), image[1].transpose(3, 0, 1, 2)[:, :, 8:24], atol=1e-5)
    assert found.slice_spacing == 5


@pytest.mark.parametrize("before", [True, False])
def test_noise_scan_gives_the_noise_level(before: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    white = (rng.standard_normal((60, COILS, 256)) + 1j * rng.standard_normal((60, COILS, 256))) / np.sqrt(2)
    noise = [block(3 * samples, ("NOISEADJSCAN",)) for samples in white]
    kspace = transform(images(1))[0]
    lines = [block(kspace[:, :, y], Lin=y) for y in range(Y)]
    scans = [(noise, header()), (lines, header())] if before else [(noise + lines, header())]
    found = read(write(tmp_path / "meas.dat", *scans))
    # A noise scan of 256 samples has 30 us between them, the image 5; its bandwidth is 0.793 of the sampling rate.
    assert found.sigma_y == pytest.approx(3 * np.sqrt(30 / 5 / 0.793), rel=0.02)


def test_reference_lines_are_for_calibration_only(tmp_path: Path) -> None:
    kspace = transform(images(1))[0]
    lines = [block(kspace[:, :, y], Lin=y) for y in range(0, Y, 2)]
    reference = [block(2 * kspace[:, :, y], ("PATREFSCAN",), Lin=y) for y in range(6, 14)]
    found = read(write(tmp_path / "meas.dat", (lines + reference, header(mode=4))))
    np.testing.assert_array_equal(found.description["mask"][0, 0], np.arange(Y) % 2 == 0)
    assert found.calibration is not None
    np.testing.assert_array_equal((found.calibration[0, 0] != 0).any(0), (np.arange(Y) >= 6) & (np.arange(Y) < 14))
    embedded = read(write(tmp_path / "embedded.dat", (lines + reference, header(mode=2))))
    np.testing.assert_array_equal(
        embedded.description["mask"][0, 0], (np.arange(Y) % 2 == 0) | ((np.arange(Y) >= 6) & (np.arange(Y) < 14))
    )


def test_what_is_no_such_image(tmp_path: Path) -> None:
    kspace = transform(images(1))[0]
    lines = [block(kspace[:, :, y], Lin=y) for y in range(Y)]
    back = [block(kspace[:, :, y], ("REFLECT",) * (y % 2), Lin=y) for y in range(Y)]
    scans = {
        "both directions": [(back, header())],
        "sample positions are not in the file": [(lines, header(trajectory=2))],
        "no image readouts": [([block(kspace[:, :, 0], ("NOISEADJSCAN",))], header())],
        "damaged, or not Siemens raw data": [(lines, header()[:40])],
    }
    for i, (line, measurements) in enumerate(scans.items()):
        with pytest.raises(InputError, match=line):
            read_scan(write(tmp_path / f"{i}.dat", *measurements))
    (tmp_path / "text.dat").write_text("1 2 3\n" * 100)
    with pytest.raises(InputError, match="damaged"):
        read_scan(tmp_path / "text.dat")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "meas.dat", ([block(transform(images(1))[0, :, :, 0])], header()))
    original = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "twixtools":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=re.escape("pip install 'ddip-pl[twix]'")):
        read_scan(path)
