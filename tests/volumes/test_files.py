"""Reading volumes: orientation, voxel size, and bad files."""

import gzip
from itertools import permutations, product
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from ddip_pl.errors import InputError
from ddip_pl.volumes.files import read_nifti, read_volume, volume_name

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
    "colours": (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected real numbers"),
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
    "voxel size 0.nii": with_header(80, 0, 0, 0, 0),
    "negative voxel size.nii": with_header(84, 0, 0, 0x80, 0xBF),  # -1
    "negative dimension.nii": with_header(42, 0xFF, 0xFF),
    "unknown data type.nii": with_header(70, 0xFF, 0x0F),
    "data before their header.nii": with_header(108, 0, 0, 0, 0x41),
    "not NIfTI.png": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    (tmp_path / name).write_bytes(BAD_FILES[name])
    refuse(tmp_path / name, "not a readable NIfTI file")


@pytest.mark.parametrize("column", [0, 1, 2])
def test_affine_that_cannot_be_inverted(tmp_path, column):
    affine = AFFINE.copy()
    affine[:3, column] = 2 * affine[:3, (column + 1) % 3]
    image = nib.Nifti1Image(values(4, 5, 6), AFFINE)
    image.header.set_sform(affine, code=1)
    content = bytearray(image.to_bytes())
    content[280 : 280 + 48] = affine[:3].astype(np.float32).tobytes()
    (tmp_path / "volume.nii").write_bytes(content)
    refuse(tmp_path / "volume.nii", "expected an invertible 4x4 matrix")


@pytest.mark.parametrize("name", ["missing", "missing.nii", "missing/volume.nii.gz", "missing.h5", "missing.h5:image"])
def test_missing_files(tmp_path, name):
    refuse(tmp_path / name, "no such file")


def refuse(path: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"volume {Path(path).parent}")
    assert Path(path).name.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_complex_voxels_are_refused(tmp_path):
    path = tmp_path / "complex.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.complex64) * (1 + 2j), np.eye(4)), path)
    with pytest.raises(InputError, match="complex voxels"):
        read_nifti(path)


# --- which reader ---------------------------------------------------------------------------------------------


def test_the_reader_goes_by_what_lies_there(tmp_path):
    data = values(4, 5, 6)
    save(tmp_path / "scan.nii.gz", data)
    (tmp_path / "scan").mkdir()
    odd = save(tmp_path / "scan:1.nii", data)
    for path in (tmp_path / "scan.nii.gz", str(tmp_path / "scan.nii.gz"), odd):
        np.testing.assert_array_equal(read_volume(path).data, data)
    np.save(tmp_path / "000.npy", data[0])
    assert read_volume(tmp_path).data.shape == (6, 5, 1)
    write(tmp_path / "scan.H5", {"image": data})
    assert read_volume(tmp_path / "scan.H5").data.size == data.size


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/scan.nii", "scan"), ("scan.v2.nii.gz", "scan.v2"), ("scan.h5", "scan"), ("L067", "L067"),
        ("1.2.840.5", "1.2.840.5"), ("L067/", "L067"), ("sub/..", "here"), (".", "here"), ("here.h5:a/b", "here-a-b"),
        ("L067:12", "L067-12"),
    ],
)  # fmt: skip
def test_name_of_the_results(tmp_path, monkeypatch, path, name):
    (tmp_path / "here" / "L067").mkdir(parents=True)
    (tmp_path / "here" / "sub").mkdir()
    (tmp_path / "here" / "here.h5").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert volume_name(path) == name


@pytest.mark.parametrize("name", ["1.dcm", "000.npy"])
def test_a_single_slice_is_no_volume(tmp_path, name):
    (tmp_path / name).touch()
    refuse(tmp_path / name, "give the folder")


def test_empty_folder(tmp_path):
    refuse(tmp_path, "no DICOM images and no .npy slices")
    refuse(f"{tmp_path}:3", "no DICOM images")


# --- folders of .npy slices -----------------------------------------------------------------------------------


def slices(folder: Path, images: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, image in images.items():
        np.save(folder / name, image, allow_pickle=True)
    return folder


@pytest.mark.parametrize("name", ["{:03d}.npy", "{}.npy", "full_{}.npy"])
def test_npy_slices(tmp_path, name):
    images = values(12, 4, 5)  # (slices, rows, columns)
    volume = read_volume(slices(tmp_path / "L067", {name.format(i + 7): image for i, image in enumerate(images)}))
    # Rows go to the back, columns to the left, slices to the head.
    np.testing.assert_array_equal(volume.data, images.transpose(2, 1, 0)[::-1, ::-1])
    np.testing.assert_array_equal(volume.voxel_size, 1)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    first_pixel = volume.affine @ (4, 3, 0, 1)
    np.testing.assert_array_equal(first_pixel, (0, 0, 0, 1))


IMAGE = values(4, 5)
BAD_SLICES = {
    "size": ({"0.npy": IMAGE, "1.npy": values(4, 6)}, r"1.npy has shape \(4, 6\), expected \(4, 5\)"),
    "3d": ({"0.npy": values(3, 4, 5)}, r"0.npy has shape \(3, 4, 5\), expected \(rows, columns\)"),
    "3d later": ({"0.npy": IMAGE, "1.npy": values(4, 5, 1)}, "1.npy has shape"),
    "missing": ({"000.npy": IMAGE, "001.npy": IMAGE, "003.npy": IMAGE}, "slice 2 is missing between 0 and 3"),
    "twice": ({"1.npy": IMAGE, "01.npy": IMAGE}, "01.npy and 1.npy have the same number"),
    "no number": ({"a.npy": IMAGE}, "a.npy has no number"),
    "nan": ({"0.npy": IMAGE, "1.npy": np.full((4, 5), np.nan)}, "20 voxels are NaN"),
    "beyond float32": ({"0.npy": IMAGE, "1.npy": np.full((4, 5), 1e200)}, "20 voxels are NaN or infinite"),
    "complex": ({"0.npy": IMAGE * 1j}, "complex voxels"),
    "text": ({"0.npy": np.full((4, 5), "a")}, "expected real numbers"),
    "objects": ({"0.npy": np.full((4, 5), None)}, "0.npy is not a readable array"),
    "constant": ({"0.npy": np.ones((4, 5))}, "same value"),
}


@pytest.mark.parametrize("kind", BAD_SLICES)
def test_bad_npy_slices(tmp_path, kind):
    images, message = BAD_SLICES[kind]
    refuse(slices(tmp_path / "L067", images), message)


def test_npy_slice_that_is_no_array(tmp_path):
    folder = slices(tmp_path / "L067", {"0.npy": IMAGE})
    (folder / "1.npy").write_bytes((folder / "0.npy").read_bytes()[:-7])
    refuse(folder, "1.npy is not a readable array")


# --- HDF5 -----------------------------------------------------------------------------------------------------


def write(path: Path, datasets: dict[str, np.ndarray], **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data).attrs.update(attributes)
    return path


def test_hdf5_with_an_affine_is_read_as_the_nifti_file_of_the_same_array(tmp_path):
    data = values(4, 5, 6)
    affine = AFFINE[:, [2, 0, 1, 3]] @ np.diag([-1, 1, -1, 1])
    expected = read_volume(save(tmp_path / "scan.nii", data, affine))
    volume = read_volume(write(tmp_path / "scan.h5", {"image": data}, affine=affine, units="HU"))
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert volume.units == "HU"


@pytest.mark.parametrize(("attributes", "size"), [({}, (1, 1, 1)), ({"voxel_size": (3.0, 2.0, 1.5)}, (1.5, 2, 3)),
                                                  ({"voxel_size": 2}, (2, 2, 2))])  # fmt: skip
def test_hdf5_without_an_affine_holds_axial_images(tmp_path, attributes, size):
    data = values(6, 4, 5)  # (slices, rows, columns)
    volume = read_volume(write(tmp_path / "scan.h5", {"image": data}, **attributes))
    np.testing.assert_array_equal(volume.data, data.transpose(2, 1, 0)[::-1, ::-1])
    np.testing.assert_allclose(volume.voxel_size, size)
    assert volume.units == ""


def test_dataset_of_an_hdf5_file(tmp_path):
    data = values(3, 6, 4, 5)
    path = write(
        tmp_path / "scan.h5", {"a": data[0], "group/b": data[1], "kspace": data[2] * 1j, "angles": data[0, 0, 0]}
    )
    for name, expected in (("a", data[0]), ("group/b", data[1]), ("/group/b", data[1])):
        volume = read_volume(f"{path}:{name}")
        np.testing.assert_array_equal(volume.data, expected.transpose(2, 1, 0)[::-1, ::-1])
    there = r"available datasets: a \(6, 4, 5\) float32, angles \(5,\) float32, group/b \(6, 4, 5\) float32, kspace"
    refuse(path, f"2 3D datasets of real numbers; choose one as {path}:NAME; {there}")
    refuse(f"{path}:c", f"no dataset c; choose one as {path}:NAME; {there}")
    refuse(f"{path}:group", "no dataset group;")
    refuse(f"{path}:kspace", "complex voxels")
    refuse(f"{path}:angles", "1 dimensions")


def test_measurements_are_no_volumes(tmp_path):
    """They are recognised before one of their datasets is taken for a volume."""
    ours = write(tmp_path / "ours.h5", {"data": values(3, 4, 5)})
    with h5py.File(ours, "a") as file:
        file.attrs["operator"] = "parallel_beam"
    fastmri = write(tmp_path / "fastmri.h5", {"kspace": values(3, 4, 5), "ismrmrd_header": np.array(b"x")})
    for path in (ours, fastmri):
        refuse(path, "a measurement, not a volume; use ddip-pl predict --config configs/task/measured.yaml")
    np.save(tmp_path / "k.npy", values(2, 3, 4) * 1j)
    refuse(tmp_path / "k.npy", "k-space, not a volume; use ddip-pl predict")


BAD_HDF5 = {
    "4d": ({"image": values(2, 3, 4, 5)}, {}, "0 3D datasets.*image \\(2, 3, 4, 5\\)"),
    "no datasets": ({}, {}, "available datasets: none"),
    "nan": ({"image": hole(np.nan)}, {}, "image: 1 voxels are NaN"),
    "voxel size 0": ({"image": values(2, 3, 4)}, {"voxel_size": (1, 0, 1)}, "voxel_size of image is .1.0, 0.0, 1.0."),
    "negative voxel size": ({"image": values(2, 3, 4)}, {"voxel_size": -1}, "expected mm above 0"),
    "no voxel size": ({"image": values(2, 3, 4)}, {"voxel_size": np.nan}, "expected mm above 0"),
    "infinite voxel size": ({"image": values(2, 3, 4)}, {"voxel_size": np.inf}, "expected an invertible"),
    "two voxel sizes": ({"image": values(2, 3, 4)}, {"voxel_size": (1, 1)}, "is invalid"),
    "text": ({"image": values(2, 3, 4)}, {"voxel_size": "wide"}, "is invalid"),
    "affine 3x3": ({"image": values(2, 3, 4)}, {"affine": np.eye(3)}, "expected an invertible 4x4"),
    "affine of zeros": ({"image": values(2, 3, 4)}, {"affine": np.diag([1, 1, 0, 1])}, "expected an invertible 4x4"),
    "affine transposed": ({"image": values(2, 3, 4)}, {"affine": AFFINE.T}, "expected an invertible 4x4"),
}


@pytest.mark.parametrize("kind", BAD_HDF5)
def test_bad_hdf5(tmp_path, kind):
    datasets, attributes, message = BAD_HDF5[kind]
    refuse(write(tmp_path / "scan.h5", datasets, **attributes), message)


def test_truncated_hdf5(tmp_path):
    path = write(tmp_path / "scan.h5", {"image": values(20, 30, 40)})
    content = path.read_bytes()
    for length in (0, 100, 3000, len(content) - 5000):
        path.write_bytes(content[:length])
        refuse(path, "not a readable HDF5 file")
