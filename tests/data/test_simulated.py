"""From a volume to its measurement and back: geometry, noise, and the written volume on top of the input."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy.ndimage import map_coordinates

from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.data.simulated import VolumeDataModule, cut, fit, normalise
from ddip_pl.errors import InputError
from ddip_pl.physics import Measurement, ParallelBeamCT, SingleCoilMRI, simulate
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.reconstruction.module import Reconstruction, Result
from ddip_pl.volumes.dicom import write_dicom
from ddip_pl.volumes.files import read_nifti, read_volume
from ddip_pl.volumes.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
DEPTH_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
AFFINE = np.array([[1.9, -0.2, 0.1, -30], [0.2, 1.4, 0.3, 12], [-0.1, 0.2, 3.0, 5], [0, 0, 0, 1]])


@pytest.fixture(autouse=True, scope="module")
def user_cache(tmp_path_factory):
    """Keep the matrices of these tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def numbered(*shape: int) -> Volume:
    """A volume whose voxels have the values 0, 1, 2, ..."""
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), AFFINE)


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Scanner coordinates of all voxels, `(*shape, 3)`."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


# --- cut --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_each_pixel_lies_where_its_voxel_lies(data):
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    plane = data.draw(st.sampled_from(PLANES))
    depth = shape[DEPTH_AXIS[plane]]
    count = data.draw(st.none() | st.integers(1, depth))
    first = data.draw(st.none() | st.integers(0, depth - (count or 1)))
    volume = numbered(*shape)

    images, affine = cut(volume, plane, first, count)

    voxels = np.stack(np.unravel_index(images.astype(int), shape), axis=-1)
    expected = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(positions(images.transpose(2, 1, 0).shape, affine).transpose(2, 1, 0, 3), expected)
    assert len(np.unique(images)) == images.size == volume.data.size // depth * len(images)

    taken = voxels[:, 0, 0, DEPTH_AXIS[plane]]
    before, behind = taken[0], depth - 1 - taken[-1]
    assert len(images) == (count or depth - (first or 0))
    assert (taken == taken[0] + np.arange(len(images))).all()
    assert before == first if first is not None else 0 <= behind - before <= 1


@pytest.mark.parametrize(("plane", "up"), [("axial", 1), ("coronal", 2), ("sagittal", 2)])
def test_images_are_upright(plane, up):
    shape = (4, 5, 6)
    height = np.broadcast_to(np.arange(shape[up]).reshape([-1 if a == up else 1 for a in range(3)]), shape)
    images, _ = cut(Volume(height.astype(np.float32), np.eye(4)), plane, None, None)
    assert (images[:, 0] == shape[up] - 1).all()
    assert (images[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("first", "count", "message"),
    [
        (None, 7, "data.slices is 7; the volume has 6 axial slices"),
        (None, 0, "data.slices is 0"),
        (None, -1, "data.slices is -1"),
        (6, None, "data.first is 6"),
        (-1, 3, "data.first is -1 and data.slices is 3"),
        (4, 3, "data.first is 4 and data.slices is 3"),
    ],
)
def test_slices_that_are_not_there(first, count, message):
    with pytest.raises(InputError, match=message):
        cut(numbered(4, 5, 6), "axial", first, count)


# --- fit --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(rows=st.integers(1, 16), columns=st.integers(1, 16))
def test_small_images_are_padded_around_and_otherwise_left_alone(rows, columns):
    images = torch.rand(2, 1, rows, columns, generator=torch.Generator().manual_seed(0))
    padded, (top, bottom, left, right), affine = fit(images, 16, enlarge=False)
    assert padded.shape == (2, 1, 16, 16)
    assert torch.equal(padded[..., top : 16 - bottom, left : 16 - right], images)
    assert padded.sum() == pytest.approx(images.sum().item(), rel=1e-5)
    assert 0 <= bottom - top <= 1
    assert 0 <= right - left <= 1
    assert torch.equal(affine, torch.eye(4, dtype=torch.float64))


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    weight = image.double() / image.sum()
    return np.array([(columns * weight).sum(), (rows * weight).sum()])


@settings(deadline=None)
@given(
    rows=st.integers(20, 90),
    columns=st.integers(20, 90),
    centre=st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
    enlarge=st.booleans(),
)
def test_a_blob_stays_where_it_was(rows, columns, centre, enlarge):
    y, x = torch.arange(rows) - centre[0] * rows, torch.arange(columns) - centre[1] * columns
    blob = torch.exp(-((x / columns * 10) ** 2 + (y[:, None] / rows * 10) ** 2) / 2)
    fitted, (top, bottom, left, right), affine = fit(blob[None, None], 32, enlarge)
    inside = fitted[0, 0, top : 32 - bottom, left : 32 - right]
    factor = 32 / max(rows, columns) if enlarge else min(1, 32 / max(rows, columns))
    assert max(inside.shape) == round(max(rows, columns) * factor)
    assert min(inside.shape) == pytest.approx(min(rows, columns) * factor, abs=0.5)
    found = affine.numpy() @ [*centre_of_mass(inside), 0, 1]
    np.testing.assert_allclose(found, [*centre_of_mass(blob), 0, 1], atol=0.05)


@settings(deadline=None)
@given(rows=st.integers(1, 60), columns=st.integers(1, 60), seed=st.integers(0, 5))
def test_values_stay_between_zero_and_one(rows, columns, seed):
    images = (torch.rand(1, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    fitted, _, _ = fit(images, 20, enlarge=False)
    assert fitted.shape == (1, 1, 20, 20)
    assert fitted.min() >= 0
    assert fitted.max() <= 1


@settings(deadline=None)
@given(size=st.tuples(*[st.integers(4, 40)] * 2), old=st.tuples(*[st.integers(4, 40)] * 2), enlarge=st.booleans())
def test_height_and_width_may_differ(size, old, enlarge):
    fitted, (top, bottom, left, right), affine = fit(torch.ones(1, 1, *old), size, enlarge)
    assert fitted.shape == (1, 1, *size)
    inside = fitted[0, 0, top : size[0] - bottom, left : size[1] - right]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert fitted.sum() == pytest.approx(inside.numel(), rel=1e-5)
    shares = [new / length for new, length in zip(inside.shape, size, strict=True)]
    assert max(shares) == 1 or (not enlarge and tuple(inside.shape) == old)
    stretch = [affine[1, 1] * inside.shape[0] / old[0], affine[0, 0] * inside.shape[1] / old[1]]
    assert stretch == pytest.approx([1, 1])
    factors = [new / length for new, length in zip(inside.shape, old, strict=True)]
    assert abs(factors[0] - factors[1]) <= 0.5 / old[0] + 0.5 / old[1]
    assert enlarge or max(factors) <= 1


def test_shrinking_averages_what_it_cannot_show():
    checkerboard = torch.eye(2).repeat(48, 48)[None, None]  # left to interpolation, every third pixel would be seen
    inner = fit(checkerboard, 32, enlarge=False)[0][..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.15, rtol=0)


# --- normalise --------------------------------------------------------------------------------------------


def test_the_window_becomes_zero_to_one():
    hounsfield = np.array([-3000, -1000, -500, 0, 1000, 3000], np.float32)
    np.testing.assert_allclose(normalise(hounsfield, (-1000, 1000)), [0, 0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((5, 1), r"\(5, 1\)"),
        ((1, 1), "below"),
        ((float("nan"), 1), "below"),
        ((50, 60), "constant inside"),
        ((-9, -8), "constant inside"),
    ],
)
def test_windows_in_which_nothing_is_to_be_seen(window, message):
    with pytest.raises(InputError, match=message):
        normalise(np.arange(10.0), window)


# --- simulation -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operator(user_cache) -> ParallelBeamCT:
    return ParallelBeamCT(image_size=32, angles=24)


@pytest.fixture
def data(phantom_volume, operator):
    def make(sigma_y: float = 0.05, **settings: object) -> VolumeDataModule:
        return VolumeDataModule(str(phantom_volume), lambda size: operator, sigma_y, **settings)

    return make


@pytest.mark.parametrize("sigma_y", [2e-4, 0.05])
def test_noise_is_white_and_has_the_level_asked_for(data, operator, sigma_y):
    torch.manual_seed(7)
    measurement = data(sigma_y).simulate(operator)
    noise = measurement.y - operator(measurement.reference)
    count = noise.numel()
    assert operator.scale > 10  # else the scale of the noise could not be told from that of the physical operator
    assert noise.std().item() == pytest.approx(sigma_y, rel=4 / (2 * count) ** 0.5)
    assert abs(noise.mean().item()) < 4 * sigma_y / count**0.5
    per_slice = noise.flatten(1).std(1)
    torch.testing.assert_close(per_slice, torch.full_like(per_slice, sigma_y), rtol=0.12, atol=0)
    correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / (count / len(noise)) ** 0.5


def test_no_noise_is_no_noise(data, operator):
    measurement = data(0).simulate(operator)
    assert torch.equal(measurement.y, operator(measurement.reference))


def test_the_seed_alone_decides_about_the_noise(data, operator):
    def measured(seed: int, consumed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.randn(consumed)
        return data().simulate(operator).y

    assert torch.equal(measured(1, 0), measured(1, 1000))
    assert not torch.allclose(measured(1, 0), measured(2, 0))


def test_noise_of_the_measurement_is_not_that_of_sampling(data, operator):
    torch.manual_seed(3)
    measurement = data().simulate(operator)
    noise = (measurement.y - operator(measurement.reference)).flatten()
    torch.manual_seed(3)
    assert torch.corrcoef(torch.stack([noise, torch.randn(len(noise))]))[0, 1].abs() < 5 / len(noise) ** 0.5


def test_simulated_volume(data, operator, phantom_volume):
    volume = read_nifti(phantom_volume)
    measurement = data(slices=4, window=(-1000.0, 1000.0)).simulate(operator)
    assert len(measurement) == len(measurement.reference) == 4
    assert measurement.name == "phantom"
    assert measurement.window == (-1000, 1000)
    assert measurement.margin == (2, 2, 0, 0)
    images = measurement.unpad(measurement.reference)[:, 0].numpy()
    np.testing.assert_allclose(images, (volume.data.T[1:5, ::-1] + 1000) / 2000, atol=1e-6)


@pytest.mark.parametrize("complex_image", [False, True])
def test_volume_at_its_own_height_and_width(phantom_volume, complex_image):
    """28 x 32 pixels in the file: nothing is scaled, and nothing is padded."""
    data = VolumeDataModule(str(phantom_volume), None, 0.0, window=(-1000.0, 1000.0), size=(28, 32))
    operator = SingleCoilMRI((28, 32), torch.ones(28, 32), complex_image)
    measurement = data.simulate(operator)
    assert measurement.margin == (0, 0, 0, 0)
    images = measurement.reference.norm(dim=1).numpy()
    np.testing.assert_allclose(images, (read_nifti(phantom_volume).data.T[:, ::-1] + 1000) / 2000, atol=1e-6)
    torch.testing.assert_close(operator.pseudo_inverse(measurement.y), measurement.reference)


def test_default_window_leaves_out_the_brightest_voxels(data, operator, phantom_volume):
    values = read_nifti(phantom_volume).data
    low, high = data().simulate(operator).window
    assert low == values.min()
    assert high == pytest.approx(np.percentile(values, 99.9))


def test_slices_in_which_nothing_is_to_be_seen(tmp_path, operator):
    values = np.zeros((8, 8, 4), np.float32)
    values[:, :4, 0] = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(InputError, match="slices are constant"):
        VolumeDataModule(str(tmp_path / "volume.nii"), lambda size: operator, 0, first=2).simulate(operator)


def test_slices_that_shrink_to_nothing(tmp_path, operator):
    values = np.random.default_rng(0).normal(size=(200, 8, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(InputError, match="slices of 8 x 200 pixels"):
        VolumeDataModule(str(tmp_path / "volume.nii"), lambda size: operator, 0).simulate(operator)


@pytest.mark.parametrize("sigma_y", [-0.1, float("nan"), float("inf")])
def test_noise_levels_that_are_none(data, sigma_y):
    with pytest.raises(InputError, match=r"data\.sigma_y"):
        data(sigma_y)


# --- measurement ------------------------------------------------------------------------------------------


class Gains(LinearOperator):
    """Multiplies each slice with a number of its own."""

    def __init__(self, gains: torch.Tensor):
        super().__init__()
        self.register_buffer("gains", gains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gains.view(-1, 1, 1, 1) * x

    adjoint = pseudo_inverse = forward

    def select(self, slices):
        return Gains(self.gains[slices])


@pytest.fixture
def measurement() -> Measurement:
    x = torch.rand(5, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    gains = Gains(torch.arange(1.0, 6.0))
    return Measurement(simulate(x, gains, 0.0), gains, 0.0, "some", reference=x, margin=(1, 2, 0, 3))


@pytest.mark.parametrize("slices", [slice(1, 4), slice(4, None), torch.tensor([3, 0, 2])])
def test_part_of_a_measurement(measurement, slices):
    part = measurement[slices]
    assert len(part) == len(measurement.reference[slices])
    assert torch.equal(part.y, measurement.y[slices])
    assert torch.equal(part.reference, measurement.reference[slices])
    assert part.residual(part.reference).abs().max() == 0  # the operator is that of these slices
    torch.testing.assert_close(
        part.residual(part.reference + 1), part.operator.gains.view(-1, 1, 1, 1).expand_as(part.y)
    )
    assert torch.equal(part.operator.gains, measurement.operator.gains[slices])
    assert (part.name, part.margin) == (measurement.name, measurement.margin)
    assert len(measurement) == 5


def test_part_of_a_measurement_without_reference(measurement):
    measurement.reference = None
    assert measurement[:2].reference is None


def test_residual_is_what_the_image_does_not_explain(measurement):
    x = measurement.reference + torch.eye(8)[:6]
    expected = torch.eye(8)[:6] * torch.arange(1.0, 6.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(measurement.residual(x), expected)


def test_all_tensors_move(measurement):
    moved = measurement.to(torch.float64)
    assert moved.y.dtype == moved.reference.dtype == moved.operator.gains.dtype == torch.float64
    assert measurement.y.dtype == measurement.reference.dtype == torch.float32
    elsewhere = measurement.to("meta")
    assert elsewhere.y.is_meta
    assert elsewhere.reference.is_meta
    assert not elsewhere.affine.is_meta  # geometry is for files, and stays with them
    assert elsewhere.name == "some"


def test_padding_is_taken_off(measurement):
    x = torch.zeros(2, 1, 6, 8)
    x[..., 1:4, :5] = 1
    assert torch.equal(measurement.unpad(x), torch.ones(2, 1, 3, 5))
    measurement.margin = (0, 0, 0, 0)
    assert torch.equal(measurement.unpad(x), x)


# --- end to end: what is written lies on top of what was read ------------------------------------------------


@pytest.fixture(scope="module")
def module(tiny_prior) -> Reconstruction:
    return Reconstruction(prior=str(tiny_prior))


def written(module: Reconstruction, path: Path, operator: LinearOperator, **settings: object) -> Volume:
    """The volume that is written when the reconstruction is perfect."""
    measurement = VolumeDataModule(str(path), lambda size: operator, 0.0, **settings).simulate(operator)
    writer = VolumeWriter(path.parent, "task", "method")
    writer.write(module, Result(measurement, measurement.reference, [{"seconds": 0.0}], {}, 0), with_reference=False)
    image = nib.load(path.parent / measurement.name / "reconstruction.nii.gz")
    return Volume(image.get_fdata(), image.affine)


def resample(volume: Volume, places: np.ndarray) -> np.ndarray:
    """Values at scanner coordinates `(..., 3)` by linear interpolation; NaN outside."""
    inverse = np.linalg.inv(volume.affine)
    indices = np.moveaxis(places @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    return map_coordinates(volume.data, np.round(indices, 3), order=1, cval=np.nan)


@pytest.mark.parametrize("plane", PLANES)
def test_written_volume_overlays_the_input(tmp_path, module, operator, plane):
    """No image is shrunk here, so that each voxel of the input has its own in the reconstruction."""
    values = np.random.default_rng(1).uniform(-900, 1900, (20, 27, 9)).astype(np.float32)
    values[0, 0, 0], values[-1, -1, -1] = -1500, 2500  # outside the window
    flipped = AFFINE @ np.diag([-1, -1, 1, 1.0])  # LPS+, as DICOM has it
    nib.save(nib.Nifti1Image(values, flipped), tmp_path / "volume.nii.gz")
    depth = values.shape[DEPTH_AXIS[plane]]

    settings = {"plane": plane, "first": 1, "window": (-1000.0, 2000.0), "enlarge": False}
    result = written(module, tmp_path / "volume.nii.gz", operator, **settings)

    found = resample(result, positions(values.shape, flipped))
    expected = np.clip(values, -1000, 2000)
    covered = np.moveaxis(~np.isnan(found), DEPTH_AXIS[plane], 0)
    missing = 0 if plane == "axial" else depth - 1  # the first slice of a flipped axis is the last
    assert not covered[missing].any()
    assert np.delete(covered, missing, axis=0).all()
    np.testing.assert_allclose(found[~np.isnan(found)], expected[~np.isnan(found)], atol=0.3)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("shape", [(50, 44, 47), (20, 23, 18)])
def test_written_volume_overlays_the_input_that_was_scaled(tmp_path, module, operator, plane, shape):
    """A linear ramp survives scaling, but for its border; a shift of a quarter voxel would be seen."""
    ramp = np.indices(shape).transpose(1, 2, 3, 0) @ np.array([3.0, 2.0, 5.0])
    nib.save(nib.Nifti1Image(ramp.astype(np.float32), AFFINE), tmp_path / "ramp.nii")
    result = written(module, tmp_path / "ramp.nii", operator, plane=plane, window=(0.0, 500.0))
    assert max(result.data.shape[:2]) == 32
    assert result.data.shape[2] == ramp.shape[DEPTH_AXIS[plane]]

    inner = (slice(4, -4),) * 3
    found = resample(result, positions(ramp.shape, AFFINE))[inner]
    np.testing.assert_allclose(found, ramp[inner], atol=0.3)


@pytest.mark.parametrize("plane", PLANES)
def test_results_of_an_oblique_dicom_series_lie_on_top_of_it(tmp_path, module, operator, plane):
    """As NIfTI and as DICOM, each voxel at the place where the slices of the scanner have it."""
    values = np.random.default_rng(1).uniform(0, 1000, (20, 27, 9)).astype(np.float32)
    turn = np.array([[0.96, 0.28, 0], [-0.168, 0.576, -0.8], [-0.224, 0.768, 0.6]])
    affine = np.eye(4)
    affine[:3] = np.column_stack([turn * (1.5, 2, 3), (-30, 12, 5)])
    write_dicom(tmp_path / "scan", values, affine)
    source = read_volume(tmp_path / "scan")
    np.testing.assert_allclose(resample(source, positions(values.shape, affine)), values, atol=0.1)

    data = VolumeDataModule(
        str(tmp_path / "scan"), lambda size: operator, 0, plane, enlarge=False, window=(0.0, 1000.0)
    )
    measurement = data.simulate(operator)
    result = Result(measurement, measurement.reference, [{"seconds": 0.0}], {}, 0)
    (tmp_path / "out").mkdir()
    VolumeWriter(tmp_path / "out", "task", "method", dicom=True).write(module, result, with_reference=False)
    for name in ("reconstruction.nii.gz", "dicom"):
        found = resample(read_volume(tmp_path / "out" / "scan" / name), positions(values.shape, affine))
        np.testing.assert_allclose(found, values, atol=0.1)
    header = dcmread(tmp_path / "out" / "scan" / "dicom" / "0001.dcm")
    assert header.StudyInstanceUID == source.header.StudyInstanceUID
    assert header.SeriesInstanceUID != source.header.SeriesInstanceUID
    assert header.SeriesDescription == "task method"


def test_units_of_the_volume_are_those_of_its_measurement(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("ct", data=numbered(3, 16, 16).data).attrs["units"] = "HU"
    data = VolumeDataModule(str(tmp_path / "scan.h5"), lambda size: ParallelBeamCT(size, angles=4), 0.01)
    assert data.simulate(data.operator(16)).units == "HU"
