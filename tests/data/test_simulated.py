"""From a volume to its measurement and back: geometry, noise, and a written volume aligned with the input."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from pydicom import dcmread
from scipy.ndimage import map_coordinates
from torch import Tensor

from ddip_pl.data.module import Scan
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, LinearOperator, ParallelBeamCT, SingleCoilMRI
from ddip_pl.volumes.dicom import write_dicom
from ddip_pl.volumes.files import read_nifti, read_volume
from ddip_pl.volumes.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
DEPTH_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
AFFINE = np.array([[1.9, -0.2, 0.1, -30], [0.2, 1.4, 0.3, 12], [-0.1, 0.2, 3.0, 5], [0, 0, 0, 1]])
CT = partial(ParallelBeamCT, angles=24)


@pytest.fixture(autouse=True, scope="module")
def user_cache(tmp_path_factory):
    """Keep the matrices of these tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Scanner coordinates of all voxels, `(*shape, 3)`."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


# --- simulation ----------------------------------------------------------------------------------------------


@pytest.fixture
def data(phantom_volume):
    def make(sigma_y: float = 0.05, **settings: object) -> VolumeDataModule:
        return VolumeDataModule(str(phantom_volume), CT, sigma_y, **settings)

    return make


@pytest.mark.parametrize("sigma_y", [2e-4, 0.05])
def test_noise_is_white_and_has_the_level_asked_for(data, sigma_y):
    torch.manual_seed(7)
    measurement, _ = data(sigma_y).simulate(32)
    operator = measurement.operator
    noise = measurement.y - operator(measurement.reference)
    count = noise.numel()
    assert operator.scale > 10  # otherwise the test could not tell the scale of the noise from the physical operator's
    assert noise.std().item() == pytest.approx(sigma_y, rel=4 / (2 * count) ** 0.5)
    assert abs(noise.mean().item()) < 4 * sigma_y / count**0.5
    per_slice = noise.flatten(1).std(1)
    torch.testing.assert_close(per_slice, torch.full_like(per_slice, sigma_y), rtol=0.12, atol=0)
    correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / (count / len(noise)) ** 0.5


def test_no_noise_is_no_noise(data):
    measurement, _ = data(0).simulate(32)
    assert torch.equal(measurement.y, measurement.operator(measurement.reference))


def test_the_seed_alone_decides_about_the_noise(data):
    def measured(seed: int, consumed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.randn(consumed)
        return data().simulate(32).measurement.y

    assert torch.equal(measured(1, 0), measured(1, 1000))
    assert not torch.allclose(measured(1, 0), measured(2, 0))


def test_noise_of_the_measurement_is_not_that_of_sampling(data):
    torch.manual_seed(3)
    measurement, _ = data().simulate(32)
    noise = (measurement.y - measurement.operator(measurement.reference)).flatten()
    torch.manual_seed(3)
    assert torch.corrcoef(torch.stack([noise, torch.randn(len(noise))]))[0, 1].abs() < 5 / len(noise) ** 0.5


def test_simulated_volume(data, phantom_volume):
    volume = read_nifti(phantom_volume)
    measurement, frame = data(slices=4, window=(-1000.0, 1000.0)).simulate(32)
    assert len(measurement) == len(measurement.reference) == 4
    assert measurement.operator.shape == (4, 32, 32)
    assert frame.name == "phantom"
    assert frame.window == (-1000, 1000)
    assert frame.margin == (2, 2, 0, 0)
    images = frame.unpad(measurement.reference)[:, 0].numpy()
    np.testing.assert_allclose(images, (volume.data.T[1:5, ::-1] + 1000) / 2000, atol=1e-6)


@pytest.mark.parametrize("complex_image", [False, True])
def test_volume_at_its_own_height_and_width(phantom_volume, complex_image):
    """28 x 32 pixels in the file: nothing is scaled, and nothing is padded."""
    operator = partial(SingleCoilMRI, mask=torch.ones(28, 32), complex_image=complex_image)
    data = VolumeDataModule(str(phantom_volume), operator, 0.0, window=(-1000.0, 1000.0))
    measurement, frame = data.simulate((28, 32))
    assert frame.margin == (0, 0, 0, 0)
    images = measurement.reference.norm(dim=1).numpy()
    np.testing.assert_allclose(images, (read_nifti(phantom_volume).data.T[:, ::-1] + 1000) / 2000, atol=1e-6)
    torch.testing.assert_close(measurement.operator.pseudo_inverse(measurement.y), measurement.reference)


def test_default_window_leaves_out_the_brightest_voxels(data, phantom_volume):
    values = read_nifti(phantom_volume).data
    low, high = data().simulate(32).frame.window
    assert low == values.min()
    assert high == pytest.approx(np.percentile(values, 99.9))


def test_slices_in_which_nothing_is_to_be_seen(tmp_path):
    values = np.zeros((8, 8, 4), np.float32)
    values[:, :4, 0] = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(InputError, match="slices are constant"):
        VolumeDataModule(str(tmp_path / "volume.nii"), CT, 0, first=2).simulate(32)


def test_slices_that_shrink_to_nothing(tmp_path):
    values = np.random.default_rng(0).normal(size=(200, 8, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(InputError, match="slices of 8 x 200 pixels"):
        VolumeDataModule(str(tmp_path / "volume.nii"), CT, 0).simulate(32)


@pytest.mark.parametrize("sigma_y", [-0.1, float("nan"), float("inf")])
def test_noise_levels_that_are_none(data, sigma_y):
    with pytest.raises(InputError, match="sigma_y is"):
        data(sigma_y)


@pytest.mark.parametrize(("size", "expected"), [((28, 32), (28, 32)), (None, (20, 20))])
def test_size_of_the_user_or_else_of_the_method(phantom_volume, size, expected):
    mask = torch.ones(expected)
    data = VolumeDataModule(str(phantom_volume), partial(SingleCoilMRI, mask=mask), 0.0, slices=2, size=size)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(image_size=20))
    data.setup("test")
    [(measurement, _)] = data.scans
    assert measurement.reference.shape == (2, 1, *expected)


class Brighter(LinearOperator):
    """Measures the lower half of the image, times seven."""

    def forward(self, x: Tensor) -> Tensor:
        return 7 * x[..., x.shape[2] // 2 :, :]


def test_an_operator_of_any_norm(phantom_volume):
    """The noise is in the scale of the unit-norm operator."""
    torch.manual_seed(0)
    measurement, _ = VolumeDataModule(str(phantom_volume), Brighter, 0.01).simulate(32)
    assert measurement.operator.norm == pytest.approx(1)
    assert measurement.operator.scale == pytest.approx(7)
    torch.testing.assert_close(measurement.operator(measurement.reference), measurement.reference[..., 16:, :])
    assert (measurement.y - measurement.reference[..., 16:, :]).std().item() == pytest.approx(0.01, rel=0.05)


def test_the_reference_is_zero_where_nothing_is_measured(phantom_volume):
    """It is still measured like the volume itself."""
    maps = torch.ones(1, 2, 32, 32, dtype=torch.complex64)
    maps[..., :16] = 0
    operator = partial(SENSE, mask=torch.ones(32, 32), maps=maps)
    measurement, _ = VolumeDataModule(str(phantom_volume), operator, 0.0).simulate(32)
    assert not measurement.reference[..., :16].any()
    assert measurement.reference[..., 16:].any()
    assert torch.equal(measurement.y, measurement.operator(measurement.reference))


def test_the_measurement_moves_and_the_frame_stays(data):
    scan = data().simulate(32)
    moved = move_data_to_device(scan, torch.device("meta"))
    assert isinstance(moved, Scan)
    assert moved.measurement.y.is_meta
    assert moved.measurement.reference.is_meta
    assert moved.frame is scan.frame


# --- end to end: the written volume is aligned with the input ------------------------------------------------


def written(path: Path, **settings: object) -> Volume:
    """The volume written if the reconstruction is perfect."""
    measurement, frame = VolumeDataModule(str(path), CT, 0.0, **settings).simulate(32)
    nib.save(frame.nifti(frame.unpad(measurement.reference)), path.parent / "reconstruction.nii.gz")
    image = nib.load(path.parent / "reconstruction.nii.gz")
    return Volume(image.get_fdata(), image.affine)


def resample(volume: Volume, places: np.ndarray) -> np.ndarray:
    """Values at scanner coordinates `(..., 3)` by linear interpolation; NaN outside."""
    inverse = np.linalg.inv(volume.affine)
    indices = np.moveaxis(places @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    return map_coordinates(volume.data, np.round(indices, 3), order=1, cval=np.nan)


@pytest.mark.parametrize("plane", PLANES)
def test_written_volume_overlays_the_input(tmp_path, plane):
    """No image is shrunk here, so that each voxel of the input has its own in the reconstruction."""
    values = np.random.default_rng(1).uniform(-900, 1900, (20, 27, 9)).astype(np.float32)
    values[0, 0, 0], values[-1, -1, -1] = -1500, 2500  # outside the window
    flipped = AFFINE @ np.diag([-1, -1, 1, 1.0])  # LPS+, as in DICOM
    nib.save(nib.Nifti1Image(values, flipped), tmp_path / "volume.nii.gz")
    depth = values.shape[DEPTH_AXIS[plane]]

    settings = {"plane": plane, "first": 1, "window": (-1000.0, 2000.0), "enlarge": False}
    result = written(tmp_path / "volume.nii.gz", **settings)

    found = resample(result, positions(values.shape, flipped))
    expected = np.clip(values, -1000, 2000)
    covered = np.moveaxis(~np.isnan(found), DEPTH_AXIS[plane], 0)
    missing = 0 if plane == "axial" else depth - 1  # the first slice of a flipped axis is the last
    assert not covered[missing].any()
    assert np.delete(covered, missing, axis=0).all()
    np.testing.assert_allclose(found[~np.isnan(found)], expected[~np.isnan(found)], atol=0.3)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("shape", [(50, 44, 47), (20, 23, 18)])
def test_written_volume_overlays_the_input_that_was_scaled(tmp_path, plane, shape):
    """A linear ramp survives scaling except at its border; a shift of a quarter voxel would fail the test."""
    ramp = np.indices(shape).transpose(1, 2, 3, 0) @ np.array([3.0, 2.0, 5.0])
    nib.save(nib.Nifti1Image(ramp.astype(np.float32), AFFINE), tmp_path / "ramp.nii")
    result = written(tmp_path / "ramp.nii", plane=plane, window=(0.0, 500.0))
    assert max(result.data.shape[:2]) == 32
    assert result.data.shape[2] == ramp.shape[DEPTH_AXIS[plane]]

    inner = (slice(4, -4),) * 3
    found = resample(result, positions(ramp.shape, AFFINE))[inner]
    np.testing.assert_allclose(found, ramp[inner], atol=0.3)


@pytest.mark.parametrize("plane", PLANES)
def test_results_of_an_oblique_dicom_series_lie_on_top_of_it(tmp_path, plane):
    """As NIfTI and as DICOM, each voxel stays at its place in the scanner."""
    values = np.random.default_rng(1).uniform(0, 1000, (20, 27, 9)).astype(np.float32)
    turn = np.array([[0.96, 0.28, 0], [-0.168, 0.576, -0.8], [-0.224, 0.768, 0.6]])
    affine = np.eye(4)
    affine[:3] = np.column_stack([turn * (1.5, 2, 3), (-30, 12, 5)])
    write_dicom(tmp_path / "scan", values, affine)
    source = read_volume(tmp_path / "scan")
    np.testing.assert_allclose(resample(source, positions(values.shape, affine)), values, atol=0.1)

    data = VolumeDataModule(str(tmp_path / "scan"), CT, 0, plane, enlarge=False, window=(0.0, 1000.0))
    measurement, frame = data.simulate(32)
    images, out = frame.unpad(measurement.reference), tmp_path / "out"
    out.mkdir()
    nib.save(frame.nifti(images), out / "reconstruction.nii.gz")
    write_dicom(out / "dicom", frame.in_units(images), frame.affine, frame.header, "task method", identify=True)
    for name in ("reconstruction.nii.gz", "dicom"):
        found = resample(read_volume(out / name), positions(values.shape, affine))
        np.testing.assert_allclose(found, values, atol=0.1)
    header = dcmread(out / "dicom" / "0001.dcm")
    assert header.StudyInstanceUID == source.header.StudyInstanceUID
    assert header.SeriesInstanceUID != source.header.SeriesInstanceUID
    assert header.SeriesDescription == "task method"


def test_units_of_the_volume_are_those_of_its_measurement(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        values = np.arange(3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16)
        file.create_dataset("ct", data=values).attrs["units"] = "HU"
    assert VolumeDataModule(str(tmp_path / "scan.h5"), CT, 0.01).simulate(16).frame.units == "HU"
