"""Measurement files: the data that are read are those that were measured; bad files give a one-line error."""

import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import CONFIGS

from ddip_pl import cli
from ddip_pl.errors import InputError
from ddip_pl.physics import Birdcage
from ddip_pl.scans.files import read_scan
from ddip_pl.scans.scan import Scan


def centred_fft(image: np.ndarray) -> np.ndarray:
    """Orthonormal Fourier transform over the last two axes, origins in the middle, by NumPy."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)


def blob(height: int, width: int, slices: int = 1) -> np.ndarray:
    """Smooth complex images `(slices, height, width)`, different in each slice, nearly 0 at the border."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    images = [np.exp(-((x - 0.1 * i) ** 2 + y**2) / 0.08) * (1 + 0.5 * np.sin(9 * x + 5 * y)) for i in range(slices)]
    return np.stack(images) * np.exp(1j * (0.5 + x + 0.5 * y))


def save(path: Path, datasets: dict[str, object], attributes: dict[str, object]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes)
    return path


def image_of(scan: Scan) -> np.ndarray:
    """What is written if the pseudo-inverse is the reconstruction; complex images stay complex."""
    measurement, frame = scan
    x = frame.unpad(measurement.operator.visible(measurement.operator.pseudo_inverse(measurement.y)))
    low, high = frame.window
    x = torch.complex(x[:, 0], x[:, 1]) if x.shape[1] == 2 else x[:, 0]
    return (x * (high - low)).numpy() + low


# --- sinograms ------------------------------------------------------------------------------------------------

MU, RADIUS, PIXEL, DETECTOR = 0.02, 40.0, 1.5, 1.2  # 1/mm and mm


def disc_sinogram(slices: int = 3, angles: int = 90) -> dict[str, object]:
    """Line integrals of a disc, by its chords; detectors of 1.2 mm, pixels of 1.5 mm."""
    s = (np.arange(101) - 50) * DETECTOR
    chords = 2 * MU * np.sqrt(np.clip(RADIUS**2 - s**2, 0, None))
    data = np.broadcast_to(chords, (slices, angles, 101)) * (1 + np.arange(slices))[:, None, None]
    return {"data": data.astype(np.float32), "angles": np.arange(angles) * np.pi / angles}


CT = {"operator": "parallel_beam", "detector_spacing": DETECTOR, "pixel_size": PIXEL, "image_size": 80}


def test_a_sinogram_comes_back_in_its_units(tmp_path):
    measurement, frame = scan = read_scan(save(tmp_path / "disc.h5", disc_sinogram(), CT))
    images = image_of(scan)
    y, x = np.indices((80, 80)) - 39.5
    inside, outside = np.hypot(x, y) * PIXEL < RADIUS - 4, np.hypot(x, y) * PIXEL > RADIUS + 4
    for i, image in enumerate(images):
        assert image[inside].mean() == pytest.approx((1 + i) * MU, rel=0.01)
        assert abs(image[outside]).mean() < 0.05 * (1 + i) * MU
    assert frame.name == "disc"
    assert np.isnan(measurement.sigma_y)
    np.testing.assert_allclose(frame.affine[:3, :3], np.diag([PIXEL, -PIXEL, 1]))
    np.testing.assert_allclose(frame.affine @ [39.5, 39.5, 1, 1], [0, 0, 0, 1], atol=1e-9)


def test_a_sinogram_in_hounsfield_units(tmp_path):
    hounsfield = {"rescale_slope": 1000 / MU, "rescale_intercept": -1000.0, "units": "HU", "sigma_y": 0.01}
    measurement, frame = scan = read_scan(save(tmp_path / "disc.h5", disc_sinogram(), CT | hounsfield))
    np.testing.assert_allclose(image_of(scan)[:, 35:45, 35:45].mean((1, 2)), [0, 1000, 2000], atol=20)
    assert frame.units == "HU"
    assert measurement.sigma_y == pytest.approx(0.01 / measurement.operator.scale / PIXEL)


SOURCE, PLATE = 150.0, 90.0  # distances from the axis of rotation, in mm
FAN = {
    "operator": "fan_beam", "detector_spacing": 1.5, "pixel_size": PIXEL, "image_size": 80, "source_distance": SOURCE,
    "detector_distance": PLATE,
}  # fmt: skip


def fan_sinogram(slices: int = 2, views: int = 90) -> dict[str, object]:
    """Line integrals of a disc beside the axis, by its distance from each ray."""
    angles = np.arange(views) * 2 * np.pi / views
    across = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]  # along the detector
    ahead = np.stack([-np.sin(angles), np.cos(angles)], axis=-1)[:, None]  # from the source to the detector
    bins = PLATE * ahead + (np.arange(161) - 80)[:, None] * 1.5 * across
    ray = bins + SOURCE * ahead
    to_disc = np.array([10.0, -18.0]) + SOURCE * ahead
    distance = (ray[..., 0] * to_disc[..., 1] - ray[..., 1] * to_disc[..., 0]) / np.linalg.norm(ray, axis=-1)
    chords = 2 * MU * np.sqrt(np.clip(20.0**2 - distance**2, 0, None))
    return {"data": np.stack([chords] * slices).astype(np.float32), "angles": angles}


def test_a_fan_beam_comes_back_in_its_place_and_units(tmp_path):
    [image, _] = image_of(read_scan(save(tmp_path / "disc.h5", fan_sinogram(), FAN)))
    rows, columns = (np.indices((80, 80)) - 39.5) * PIXEL
    distance = np.hypot(rows - 10, columns + 18)
    assert image[distance < 17].mean() == pytest.approx(MU, rel=0.01)
    assert abs(image[(distance > 23) & (np.hypot(rows, columns) < 55)]).mean() < 0.05 * MU


# --- k-space --------------------------------------------------------------------------------------------------

MR = {"operator": "cartesian", "field_of_view": (200.0, 150.0)}


def test_one_coil_comes_back_as_it_was(tmp_path):
    image = 700 * blob(30, 45, 2)
    save(tmp_path / "one.h5", {"data": centred_fft(image)[:, None].astype(np.complex64)}, MR)
    scan = read_scan(tmp_path / "one.h5")
    np.testing.assert_allclose(image_of(scan), image, atol=1e-3)
    np.testing.assert_allclose(scan.frame.spacing, [150 / 45, 200 / 30, 1])


def test_several_coils_come_back_as_they_were(tmp_path):
    image, maps = 3e-6 * blob(30, 45, 2), Birdcage(5)((30, 45)).numpy()
    data = centred_fft(maps * image[:, None]).astype(np.complex64)
    save(tmp_path / "five.h5", {"data": data, "coil_maps": maps, "mask": np.ones((30, 45))}, MR)
    found = image_of(read_scan(tmp_path / "five.h5"))
    assert np.abs(found - image).max() < 1e-3 * np.abs(image).max()


RADIAL = {"operator": "non_cartesian", "pixel_size": 2.5, "image_size": 24}


def spokes(image: np.ndarray, count: int = 12, reach: float = 0.2) -> dict[str, np.ndarray]:
    """The Fourier sum of images `(slices, coils, 24, 24)` along spokes up to `reach` / mm."""
    angles = np.pi * np.arange(count)[:, None] / count
    radius = np.linspace(-reach, reach, 48, endpoint=False)
    trajectory = np.stack([radius * np.sin(angles), radius * np.cos(angles)], axis=-1).reshape(-1, 2)
    place = 2.5 * (np.arange(24) - 12)
    rows, columns = (np.exp(-2j * np.pi * np.outer(k, place)) for k in trajectory.T)
    return {"data": np.einsum("kr,ncrs,ks->nck", rows, image, columns) / 24, "trajectory": trajectory}


def test_samples_along_a_trajectory(tmp_path):
    """By the sum over all pixels, for positions in 1/mm."""
    image, maps = 40 * blob(24, 24, 2), Birdcage(3)(24).numpy()
    datasets = spokes(maps * image[:, None], 40)
    save(tmp_path / "scan.h5", datasets | {"coil_maps": maps}, RADIAL)
    measurement, frame = scan = read_scan(tmp_path / "scan.h5")
    np.testing.assert_allclose(
        (measurement.operator.scale * measurement.y).numpy(), datasets["data"], atol=1e-5 * np.abs(image).max()
    )
    x = torch.from_numpy(np.stack([image.real, image.imag], axis=1)).float()
    assert measurement.residual(x).norm() < 2e-3 * measurement.y.norm()
    assert np.abs(image_of(scan) - image).max() < 0.05 * np.abs(image).max()
    np.testing.assert_allclose(frame.spacing, [2.5, 2.5, 1])


def test_the_density_of_the_samples_may_be_known(tmp_path):
    datasets = spokes(blob(24, 24)[:, None])
    density = np.linspace(1, 3, datasets["data"].shape[-1])
    save(tmp_path / "scan.h5", datasets | {"density_compensation": density}, RADIAL)
    found = read_scan(tmp_path / "scan.h5").measurement.operator.density.numpy()
    np.testing.assert_allclose(found, density / 2, rtol=1e-5)


def test_coils_along_a_trajectory_are_calibrated(tmp_path):
    """The estimated maps give the same image as the true ones."""
    image, maps = blob(24, 24), Birdcage(4)(24).numpy()
    save(tmp_path / "scan.h5", spokes(maps * image[:, None], 40), RADIAL)
    scan = read_scan(tmp_path / "scan.h5", calibration=16)
    found, expected = np.abs(image_of(scan)), np.abs(image)
    assert np.abs(found - expected)[expected > 0.3].max() < 0.05 * expected.max()
    alike = np.abs((scan.measurement.operator.coil_maps.numpy().conj() * maps).sum(1))
    assert alike[expected > 0.3].min() > 0.99


def test_values_beside_the_mask_do_not_count(tmp_path):
    data = centred_fft(blob(30, 44))[:, None].astype(np.complex64)
    mask = np.zeros((30, 44))
    mask[:, ::2] = 1
    with_mask, _ = read_scan(save(tmp_path / "a.h5", {"data": data, "mask": mask}, MR))
    zeros, _ = read_scan(save(tmp_path / "b.h5", {"data": data * mask.astype(np.float32)}, MR))
    assert torch.equal(with_mask.y, zeros.y)
    assert torch.equal(with_mask.operator.mask, zeros.operator.mask)
    assert with_mask.operator.values(with_mask.y).tolist() == [30 * 22] * len(with_mask)


@pytest.mark.parametrize("shape", [(30, 45), (45, 30)])
def test_an_array_is_k_space(tmp_path, shape):
    image = blob(*shape, 2)
    data = centred_fft(Birdcage(4)(shape).numpy() * image[:, None]).astype(np.complex64)
    np.save(tmp_path / "stack.npy", data)
    np.save(tmp_path / "one.npy", data[1])
    stack, one = (read_scan(tmp_path / f"{name}.npy") for name in ("stack", "one"))
    assert (len(stack.measurement), len(one.measurement)) == (2, 1)
    torch.testing.assert_close(stack.measurement[torch.tensor([1])].y, one.measurement.y, rtol=2e-3, atol=1e-6)
    bright = np.abs(image) > 0.3
    np.testing.assert_allclose(np.abs(image_of(stack))[bright], np.abs(image)[bright], rtol=0.02)


# --- fastMRI --------------------------------------------------------------------------------------------------

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <acquisitionSystemInformation><receiverChannels>4</receiverChannels></acquisitionSystemInformation>
  <encoding>
    <encodedSpace>
      <matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
      <fieldOfView_mm><x>320.0</x><y>{fov_y}</y><z>4.5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>32</x><y>32</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{wanted}</x><y>160.0</y><z>4.5</z></fieldOfView_mm>
    </reconSpace>
    <trajectory>{trajectory}</trajectory>
    <encodingLimits><kspace_encoding_step_1>
      <minimum>0</minimum><maximum>39</maximum><center>20</center>
    </kspace_encoding_step_1></encodingLimits>
  </encoding>
</ismrmrdHeader>"""


def header(**changes: object) -> str:
    usual = {"x": 64, "y": 40, "z": 1, "fov_y": 200.0, "wanted": 160.0, "trajectory": "cartesian"}
    return HEADER.format(**usual | changes)


def fastmri(path: Path, image: np.ndarray, maps: np.ndarray | None, text: str, **datasets: np.ndarray) -> np.ndarray:
    """Write a file in fastMRI's format; returns its k-space."""
    kspace = centred_fft(image if maps is None else maps * image[:, None]).astype(np.complex64)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = text
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update({"acquisition": "AXT2", "max": 1.0, "norm": 1.0, "patient_id": "0"})
    return kspace


def test_fastmri_of_one_coil(tmp_path):
    """The readout is oversampled twice; the lines cover 200 mm, of which 160 are wanted. NumPy crops the reference."""
    image = blob(64, 40, 3)
    fastmri(tmp_path / "file1.h5", image, None, header())
    measurement, frame = scan = read_scan(tmp_path / "file1.h5")
    assert measurement.operator.shape == (3, 32, 40)
    assert frame.margin == (0, 0, 4, 4)
    np.testing.assert_allclose(image_of(scan), image[:, 16:48, 4:36], atol=1e-5)
    np.testing.assert_allclose(frame.affine[:3, :3], np.diag([5, -5, 4.5]))
    np.testing.assert_allclose(frame.affine @ [15.5, 15.5, 1, 1], [0, 0, 0, 1], atol=1e-9)
    assert (frame.name, frame.units) == ("file1", "k-space")


def test_fastmri_of_several_coils_with_a_mask(tmp_path):
    image, maps = blob(64, 40, 2), Birdcage(4)((64, 40)).numpy()
    mask = np.zeros(40, bool)
    mask[::2] = mask[12:28] = True
    fastmri(tmp_path / "file2.h5", image, maps, header(), mask=mask)
    scan = read_scan(tmp_path / "file2.h5")
    assert torch.equal(scan.measurement.operator.mask[0, 0], torch.from_numpy(mask).expand(32, -1))
    expected, found = np.abs(image[:, 16:48, 4:36]), np.abs(image_of(scan))
    assert np.abs(found - expected)[expected > 0.3].max() < 0.05


def test_lines_that_fastmri_filled_with_zeros_are_not_measured(tmp_path):
    image = blob(64, 40)
    kspace = fastmri(tmp_path / "file.h5", image, None, header())
    kspace[..., :6] = 0
    with h5py.File(tmp_path / "file.h5", "a") as file:
        file["kspace"][...] = kspace
    mask = read_scan(tmp_path / "file.h5").measurement.operator.mask[0, 0]
    assert not mask[:, :6].any()
    assert mask[:, 6:].all()


def test_a_partial_echo_is_cropped_after_the_reconstruction(tmp_path):
    image = blob(64, 40)
    kspace = fastmri(tmp_path / "file.h5", image, None, header())
    kspace[..., :10, :] = 0
    with h5py.File(tmp_path / "file.h5", "a") as file:
        file["kspace"][...] = kspace
    measurement, frame = scan = read_scan(tmp_path / "file.h5")
    assert frame.margin == (16, 16, 4, 4)
    assert not measurement.operator.mask[0, 0, :10].any()
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1))
    np.testing.assert_allclose(image_of(scan), expected[:, 16:48, 4:36], atol=1e-5)
    np.testing.assert_allclose(frame.affine @ [15.5, 15.5, 0, 1], [0, 0, 0, 1], atol=1e-9)


def test_slices_of_fastmri(tmp_path):
    fastmri(tmp_path / "file.h5", blob(64, 40, 5), None, header())
    whole, _ = read_scan(tmp_path / "file.h5")
    torch.testing.assert_close(read_scan(tmp_path / "file.h5", slices=2, first=3).measurement.y, whole.y[3:])
    torch.testing.assert_close(read_scan(tmp_path / "file.h5", slices=3).measurement.y, whole.y[1:4])


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """A folder with files that cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    sinogram = disc_sinogram(4, 90)
    data, angles = np.array(sinogram["data"]), np.array(sinogram["angles"])
    hole, zero = data.copy(), data.copy()
    hole[2, 5, 7] = np.nan
    zero[1] = 0
    for name, change in {
        "fine": {}, "detectors first": {"data": data.swapaxes(1, 2)}, "angles first": {"data": data.swapaxes(0, 1)},
        "other angles": {"angles": angles[:77]}, "degrees": {"angles": np.degrees(angles)}, "hole": {"data": hole},
        "zero": {"data": zero}, "one slice": {"data": data[0]}, "complex": {"data": data.astype(np.complex64)},
        "affine": {"affine": np.eye(3)}, "flat": {"affine": np.diag([1.0, 1, 0, 1])},
        "letters": {"angles": np.array([b"x"] * 90)}, "angles of nan": {"angles": angles * np.nan},
        "no slices": {"data": data[:0]},
    }.items():  # fmt: skip
        save(folder / f"{name}.h5", sinogram | change, CT)
    for name, attributes in {
        "pixel": {"pixel_size": -1.0}, "detector": {"detector_spacing": 0.0}, "text": {"pixel_size": "wide"},
        "helical": {"operator": "helical"}, "noise": {"sigma_y": -0.1}, "margin": {"margin": (40, 40, 0, 0)},
        "name": {"name": "../x"}, "version": {"version": 2}, "image": {"image_size": 0},
        "slope": {"rescale_slope": 0.0}, "loud": {"sigma_y": float("inf")}, "size of nan": {"image_size": float("nan")},
        "margin of nan": {"margin": (0, 0, 0, float("nan"))},
    }.items():  # fmt: skip
        save(folder / f"{name}.h5", sinogram, CT | attributes)
    (folder / "scan.nii.gz").write_bytes(b"x")
    save(folder / "sinogram.h5", {"sinogram": data, "angles": angles}, CT)
    save(folder / "no angles.h5", {"data": data}, CT)
    save(folder / "no pixel.h5", sinogram, {key: value for key, value in CT.items() if key != "pixel_size"})
    save(folder / "unknown.h5", {"images/volume": data}, {})
    (folder / "truncated.h5").write_bytes((folder / "fine.h5").read_bytes()[:-5000])
    (folder / "text only.h5").write_text("no HDF5\n")

    kspace = centred_fft(Birdcage(3)((30, 44)).numpy() * blob(30, 44, 2)[:, None]).astype(np.complex64)
    lines, hole = np.zeros((30, 44)), kspace.copy()
    lines[:, ::2] = 1
    hole[1, 2, 3, 4] = np.nan
    for name, datasets in {
        "k zeros": {"data": 0 * kspace}, "k nan": {"data": hole}, "k real": {"data": np.abs(kspace)},
        "k mask": {"data": kspace, "mask": lines.T}, "k empty mask": {"data": kspace, "mask": 0 * lines},
        "k maps": {"data": kspace, "coil_maps": np.ones((1, 3, 44, 30), np.complex64)},
        "k maps of coils": {"data": kspace, "coil_maps": np.ones((1, 4, 30, 44), np.complex64)},
        "k maps of zero": {"data": kspace, "coil_maps": np.zeros((1, 3, 30, 44), np.complex64)},
        "k centre": {"data": kspace, "mask": lines}, "k coil": {"data": kspace[:, 0]},
    }.items():  # fmt: skip
        save(folder / f"{name}.h5", datasets, MR)
    save(folder / "k fov.h5", {"data": kspace}, MR | {"field_of_view": (-200, 150)})
    save(folder / "k channels.h5", {"data": kspace}, MR | {"channels": 1})
    np.save(folder / "real.npy", np.abs(kspace[0]))
    np.save(folder / "plane.npy", kspace[0, 0])
    (folder / "truncated.npy").write_bytes((folder / "real.npy").read_bytes()[:-100])

    fan = fan_sinogram(views=40)
    for name, attributes in {
        "fan source": {"source_distance": 60.0}, "fan detector": {"detector_distance": -5.0},
        "fan nan": {"source_distance": float("nan")}, "fan text": {"source_distance": "far"},
    }.items():  # fmt: skip
        save(folder / f"{name}.h5", fan, FAN | attributes)
    save(folder / "fan axes.h5", fan | {"data": fan["data"].swapaxes(1, 2)}, FAN)
    save(folder / "fan no source.h5", fan, {key: value for key, value in FAN.items() if key != "source_distance"})

    radial = spokes(Birdcage(3)(24).numpy() * blob(24, 24, 2)[:, None])
    data, trajectory = radial["data"], radial["trajectory"]
    one = {"data": data[:, :1]}
    hole = data.copy()
    hole[1, 2, 3] = np.nan
    for name, datasets in {
        "r axes": {"trajectory": trajectory.T}, "r units": {"trajectory": trajectory * 60}, "r nan": {"data": hole},
        "r nan trajectory": {"trajectory": trajectory * np.nan}, "r zeros": {"data": 0 * data},
        "r samples": {"data": data[..., :-1]}, "r spokes": {"data": data.reshape(2, 3, 12, 48)},
        "r density": one | {"density_compensation": np.ones(48)}, "r real": {"data": np.abs(data)},
        "r no density": one | {"density_compensation": np.zeros(576)},
        "r maps": {"coil_maps": np.ones((1, 3, 32, 32), np.complex64)},
    }.items():  # fmt: skip
        save(folder / f"{name}.h5", radial | datasets, RADIAL)
    save(folder / "r centre.h5", {"data": data[..., :96], "trajectory": trajectory[:96]}, RADIAL)
    save(folder / "r no trajectory.h5", {"data": data}, RADIAL)
    save(folder / "r image.h5", radial, RADIAL | {"image_size": 3})
    save(folder / "r pixel.h5", radial, RADIAL | {"pixel_size": -2.5})

    image = blob(64, 40)
    for name, text in {
        "f radial": header(trajectory="radial"), "f 3d": header(z=12), "f header": "<xml>", "f other": "<a><b/></a>",
        "f lengths": header(x=0),
    }.items():  # fmt: skip
        fastmri(folder / f"{name}.h5", image, None, text)
    fastmri(folder / "f mask.h5", image, None, header(), mask=np.ones(32))
    save(folder / "f real.h5", {"kspace": np.abs(image), "ismrmrd_header": header()}, {})
    save(folder / "f no header.h5", {"kspace": image}, {})
    return folder


# File name, and what the error line must contain.
BAD_FILES = {
    "scan.nii.gz": "an image, not a measurement; use ddip-pl test or ddip-pl simulate",
    "none.h5": "none.h5: no such file; give HDF5",
    "truncated.h5": "truncated.h5: damaged, or not an HDF5 file",
    "text only.h5": "text only.h5: damaged, or not an HDF5 file",
    "sinogram.h5": "no numeric dataset 'data'; the file has 'angles' (90,), 'sinogram' (4, 90, 101)",
    "unknown.h5": "(ISMRMRD), no definition NXtomo; the file has 'images/volume' (4, 90, 101)",
    "no angles.h5": "no dataset 'angles' of numbers; next to the data it has no datasets",
    "no pixel.h5": "attribute 'pixel_size' is missing; expected 1 number",
    "text.h5": "attribute 'pixel_size' is wide; expected 1 number",
    "helical.h5": "attribute 'operator' is 'helical'; expected one of cartesian, ",
    "version.h5": "layout version 2, but this ddip-pl reads 1",
    "name.h5": "attribute 'name' is '../x'",
    "detectors first.h5": "(4, 101, 90) with 90 angles; expected (slices, angles, detectors); axis 2 looks like",
    "angles first.h5": "(90, 4, 101) with 90 angles; expected (slices, angles, detectors); axis 0 looks like",
    "other angles.h5": "(4, 90, 101) with 77 angles; expected (slices, angles, detectors); no axis",
    "degrees.h5": "angles from 0 to 178 span more than a full turn in radians and look like degrees; convert them",
    "angles of nan.h5": "expected a list of finite angles",
    "hole.h5": "data has NaN or infinite values in slice 2",
    "zero.h5": "data is all zero in slice 1",
    "one slice.h5": "data of shape (90, 101); expected 3 axes (slices, angles, detectors)",
    "no slices.h5": "the file has 0 slices",
    "complex.h5": "data of type complex64; expected real values",
    "affine.h5": "expected an invertible 4x4 matrix",
    "flat.h5": "expected an invertible 4x4 matrix",
    "letters.h5": "no dataset 'angles' of numbers",
    "loud.h5": "attribute 'sigma_y' is inf",
    "size of nan.h5": "attribute 'image_size' is nan; expected 1 number",
    "margin of nan.h5": "attribute 'margin' is",
    "pixel.h5": "pixel size is -1 mm; expected a positive length",
    "detector.h5": "detector spacing is 0 mm",
    "image.h5": "image_size is 0",
    "noise.h5": "sigma_y -0.1",
    "slope.h5": "rescale_slope 0",
    "margin.h5": "margin (40, 40, 0, 0) leaves nothing of 80 x 80 pixels",
    "k zeros.h5": "data is all zero in slice 0",
    "k nan.h5": "data has NaN or infinite values in slice 1",
    "k real.h5": "data of type float32; expected complex values",
    "k coil.h5": "data of shape (2, 30, 44); expected 4 axes (slices, coils, ky, kx)",
    "k mask.h5": "mask of shape (44, 30) for 2 slices of 30 x 44; expected (30, 44)",
    "k empty mask.h5": "the mask of a slice is all zero",
    "k maps.h5": "coil maps of shape (1, 3, 44, 30); expected (2, 3, 30, 44), or one slice of it",
    "k maps of coils.h5": "coil maps of shape (1, 4, 30, 44); expected (2, 3, 30, 44)",
    "k maps of zero.h5": "coil maps of a slice are all zero",
    "k centre.h5": "coil maps are estimated from a fully measured k-space centre, at least 8 wide; here it is 0",
    "k fov.h5": "pixel size is -6.66667 mm",
    "k channels.h5": "1 image channels with 3 coils",
    "real.npy": "data of type float32; expected complex values",
    "plane.npy": "data of shape (30, 44); expected 4 axes",
    "truncated.npy": "truncated.npy: damaged, or not a NumPy array",
    "f radial.h5": "a radial trajectory with 1 partitions; fastMRI files contain Cartesian 2D slices",
    "f 3d.h5": "a cartesian trajectory with 12 partitions",
    "f header.h5": "not an ISMRMRD header with a single encodedSpace and reconSpace",
    "f other.h5": "not an ISMRMRD header with a single encodedSpace and reconSpace (0 encodings)",
    "f lengths.h5": "expected positive ones",
    "f mask.h5": "mask of 32 lines for kspace of shape (1, 64, 40); expected 40",
    "f real.h5": "kspace is (1, 64, 40) of float64; expected (slices, coils, ky, kx) or (slices, ky, kx), complex",
    "f no header.h5": "no dataset 'ismrmrd_header'",
    "fan source.h5": "source_distance 60 mm, detector_distance 90 mm; expected them positive, and the source outside",
    "fan detector.h5": "source_distance 150 mm, detector_distance -5 mm; expected them positive",
    "fan nan.h5": "attribute 'source_distance' is nan",
    "fan text.h5": "attribute 'source_distance' is far; expected 1 number",
    "fan no source.h5": "attribute 'source_distance' is missing",
    "fan axes.h5": "(2, 161, 40) with 40 angles; expected (slices, angles, detectors); axis 2 looks like the angles",
    "r axes.h5": "trajectory of shape (2, 576) for 576 samples; expected (576, 2) with (ky, kx)",
    "r samples.h5": "trajectory of shape (576, 2) for 575 samples",
    "r units.h5": "trajectory has positions up to 12 / mm; pixels of 2.5 mm hold at most 0.2 / mm",
    "r nan trajectory.h5": "trajectory has positions up to nan / mm",
    "r nan.h5": "data has NaN or infinite values in slice 1",
    "r zeros.h5": "data is all zero in slice 0",
    "r real.h5": "data of type float64; expected complex values",
    "r spokes.h5": "data of shape (2, 3, 12, 48); expected 3 axes (slices, coils, samples)",
    "r density.h5": "density compensation of shape (48,) for 576 samples",
    "r no density.h5": "density compensation of shape (576,) for 576 samples; expected one value for each, at least 0",
    "r maps.h5": "coil maps of shape (1, 3, 32, 32); expected (2, 3, 24, 24), or one slice of it",
    "r centre.h5": "coil maps are estimated from a fully measured k-space centre, at least 8 wide; here it is 0 (",
    "r no trajectory.h5": "no dataset 'trajectory' of real numbers; next to the data it has no datasets",
    "r image.h5": "images of 3 x 3; expected square images, at least 4 x 4",
    "r pixel.h5": "pixel size is -2.5 mm",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(bad, name):
    """One line that names the file."""
    with pytest.raises(InputError) as caught:
        read_scan(bad / name)
    assert re.fullmatch(r".+", str(caught.value))  # the dot matches no line break
    assert str(caught.value).startswith(f"measurement {bad / name}: ")
    assert BAD_FILES[name] in str(caught.value)


@pytest.mark.parametrize("name", ["scan.nii.gz", "truncated.h5", "degrees.h5", "k nan.h5", "f header.h5", "real.npy"])
def test_bad_files_on_the_command_line(bad, tmp_path, monkeypatch, capsys, name):
    """One line, exit code 2, and nothing written."""
    monkeypatch.chdir(tmp_path)
    configs = ["--config", f"{CONFIGS}/task/measured.yaml", "--config", f"{CONFIGS}/method/fbp.yaml"]
    monkeypatch.setattr(sys, "argv", ["ddip-pl", "predict", *configs, "--data.path", str(bad / name)])
    assert cli.main() == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"ddip-pl: error: .+\n", error)
    assert BAD_FILES[name] in error
    assert str(bad / name) in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slices": 5}, "measurement {path}: data.slices is 5; the file has 4 slices"),
        ({"first": 4}, "measurement {path}: data.first is 4; the file has 4 slices"),
        ({"slices": 0}, "measurement {path}: data.slices is 0"),
    ],
)
def test_slices_that_are_not_there(bad, settings, message):
    with pytest.raises(InputError, match=re.escape(message.format(path=bad / "fine.h5"))):
        read_scan(bad / "fine.h5", **settings)
