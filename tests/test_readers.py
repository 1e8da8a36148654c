"""NIfTI files to volumes: orientation, voxel size, and files that cannot be used."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ddip_pl.data.readers import read_nifti
from ddip_pl.errors import InputError

# Nearly RAS+: a patient who lies a little askew, with voxels of 2 x 1.5 x 3 mm.
TILT = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
VOXEL_SIZE = np.array([2.0, 1.5, 3.0])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TILT * VOXEL_SIZE, (-20, 31, 7)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_data_and_affine_of_a_file_in_ras_orientation(tmp_path, name):
    data = values(4, 5, 6)
    volume = read_nifti(save(tmp_path / name, data))
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(volume.voxel_size, VOXEL_SIZE, atol=1e-5)
    assert volume.data.dtype == np.float32


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_every_storage_order_gives_the_same_volume(tmp_path, axes):
    data = values(4, 5, 6)
    for flips in product([False, True], repeat=3):
        stored = data.transpose(axes)
        to_ras = np.zeros((4, 4))  # from indices of the stored array to those of `data`
        to_ras[3, 3] = 1
        for axis, (source, flip) in enumerate(zip(axes, flips, strict=True)):
            to_ras[source, axis] = -1 if flip else 1
            to_ras[source, 3] = data.shape[source] - 1 if flip else 0
            stored = np.flip(stored, axis) if flip else stored
        volume = read_nifti(save(tmp_path / "volume.nii", stored, AFFINE @ to_ras))
        np.testing.assert_array_equal(volume.data, data)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


def test_stored_integers_are_scaled_to_physical_values(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / "ct.nii.gz")
    stored = nib.load(tmp_path / "ct.nii.gz").dataobj
    assert (stored.slope, stored.inter) == (2, -1024)
    np.testing.assert_array_equal(read_nifti(tmp_path / "ct.nii.gz").data.ravel(), np.arange(24) * 2 - 1024)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_trailing_singleton_dimensions_are_dropped(tmp_path, extra):
    data = values(4, 5, 6)
    np.testing.assert_array_equal(read_nifti(save(tmp_path / "volume.nii", data.reshape(4, 5, 6, *extra))).data, data)


@pytest.mark.parametrize(
    ("name", "shape", "millimetres", "low", "high"),
    [("ct_thorax", (120, 126, 164), 1.5, -1100, 3400), ("mr_t1_brain", (124, 160, 140), 1.0, 0, 255)],
)
def test_real_scans(shared_folder, name, shape, millimetres, low, high):
    volume = read_nifti(shared_folder / "data" / f"{name}.nii.gz")
    assert volume.data.shape == shape
    np.testing.assert_allclose(volume.voxel_size, millimetres, rtol=1e-3)
    assert low <= volume.data.min() < volume.data.max() <= high
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")


def hole(value: float) -> np.ndarray:
    data = values(4, 5, 6)
    data[1, 2, 3] = value
    return data


BAD_ARRAYS = {
    "2d": (values(4, 5), "2 dimensions"),
    "4d": (values(4, 5, 6, 2), "4 dimensions"),
    "singleton in the middle": (values(4, 5, 1, 2), "4 dimensions"),
    "nan": (hole(np.nan), "1 voxels are NaN"),
    "infinite": (hole(-np.inf), "1 voxels are NaN or infinite"),
    "constant": (np.full((4, 5, 6), 7, np.float32), "same value"),
    "no voxels": (values(4, 0, 6), "same value|not a readable"),
    "colours": (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "not a readable"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(tmp_path, kind):
    data, message = BAD_ARRAYS[kind]
    refuse(save(tmp_path / "volume.nii", data), message)


NIFTI = nib.Nifti1Image(values(4, 5, 6), AFFINE).to_bytes()


def with_header(offset: int, *content: int) -> bytes:
    return NIFTI[:offset] + bytes(content) + NIFTI[offset + len(content) :]


BAD_FILES = {
    "truncated.nii": NIFTI[:600],
    "truncated header.nii": NIFTI[:100],
    "truncated.nii.gz": gzip.compress(NIFTI)[:300],
    "no bytes.nii": b"",
    "no bytes.nii.gz": b"",
    "text.nii": b"some text\n" * 100,
    "text.nii.gz": b"some text\n" * 100,
    "not compressed.nii.gz": NIFTI,
    "damaged.nii.gz": gzip.compress(NIFTI)[:10] + b"\xff" * 400,
    "negative dimension.nii": with_header(42, 0xFF, 0xFF),
    "unknown data type.nii": with_header(70, 0xFF, 0x0F),
    "data before their header.nii": with_header(108, 0, 0, 0, 0x41),
    "not NIfTI.png": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    (tmp_path / name).write_bytes(BAD_FILES[name])
    refuse(tmp_path / name, "not a readable NIfTI file")


@pytest.mark.parametrize("name", ["", "missing.nii", "missing/volume.nii.gz"])
def test_missing_files(tmp_path, name):
    refuse(tmp_path / name, "no such file")


def refuse(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_complex_voxels_are_refused(tmp_path):
    path = tmp_path / "complex.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.complex64) * (1 + 2j), np.eye(4)), path)
    with pytest.raises(InputError, match="complex voxels"):
        read_nifti(path)
