"""DICOM series: right values in the right place, files that others can read, and no incomplete series."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from ddip_pl.errors import InputError
from ddip_pl.volumes.dicom import check_writable, write_dicom
from ddip_pl.volumes.files import read_volume

STUDY, FRAME = generate_uid(), generate_uid()
AXIAL = ((1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
OBLIQUE = ((0.96, 0.28, 0), (-0.168, 0.576, -0.8))
TO_RAS = np.diag([-1, -1, 1, 1])


def levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)


def save(
    path: Path, image: np.ndarray, position: Any, orientation: Any = AXIAL, series: str = "1.2.3.1", **tags: Any
) -> Path:
    """One slice `(rows, columns)` with pixels of 0.7 mm (across) and 0.5 mm (down), as a scanner would write it."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.Modality = CTImageStorage, "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = STUDY, series, FRAME
    header.SeriesNumber, header.SeriesDescription = 2, "thorax"
    header.SpecificCharacterSet, header.PatientName, header.PatientID = "ISO_IR 100", "Müller^Anna", "17"
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelSpacing, header.SliceThickness = [0.5, 0.7], 1.25
    header.ImagePositionPatient, header.ImageOrientationPatient = list(position), list(np.ravel(orientation))
    header.set_pixel_data(np.ascontiguousarray(image), "MONOCHROME2", 16)
    for tag, value in tags.items():
        if value is None:
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, images: np.ndarray, orientation: Any = AXIAL, spacing: float = 2.5, **tags: Any) -> Path:
    """`(slices, rows, columns)` along the normal, from (-20, 31, 7); file names do not follow the order."""
    normal = np.cross(*orientation)
    names = np.random.default_rng(1).permutation(len(images))
    for index, image in enumerate(images):
        place = np.array((-20, 31, 7)) + index * spacing * normal
        save(folder / f"{names[index]}.dcm", image, place, orientation, InstanceNumber=names[index] + 1, **tags)
    return folder


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
def test_values_stand_where_the_headers_say(tmp_path, orientation):
    images = levels(5, 4, 6)
    volume = read_volume(series(tmp_path, images, orientation))
    assert (volume.units, nib.aff2axcodes(volume.affine)) == ("HU", ("R", "A", "S"))
    assert volume.data.size == images.size
    row, column = np.array(orientation)
    for k, j, i in np.ndindex(images.shape):  # PS3.3 C.7.6.2.1.1
        place = np.array((-20, 31, 7)) + i * 0.7 * row + j * 0.5 * column + k * 2.5 * np.cross(row, column)
        index = np.linalg.solve(volume.affine, TO_RAS @ (*place, 1))
        np.testing.assert_allclose(index, index.round(), atol=1e-4)
        assert volume.data[tuple(index[:3].round().astype(int))] == images[k, j, i] - 1024.0


def test_real_series(shared_folder):
    folder = shared_folder / "data" / "dicom_mr_t1"
    volume = read_volume(folder)
    assert volume.data.shape == (512, 512, 16)
    np.testing.assert_allclose(volume.voxel_size, (0.41015625, 0.41015625, 1.5), atol=1e-6)
    assert volume.units == ""
    for path in folder.glob("*.dcm"):
        header = dcmread(path)
        image = header.pixel_array
        for j, i in ((0, 0), (511, 0), (100, 400)):
            # Rows and columns of this series run along the axes to the patient's left and back.
            x, y, z = header.ImagePositionPatient
            place = (-(x + i * 0.41015625), -(y + j * 0.41015625), z, 1)
            index = np.linalg.solve(volume.affine, place)
            np.testing.assert_allclose(index, index.round(), atol=1e-3)
            assert volume.data[tuple(index[:3].round().astype(int))] == image[j, i]


def test_slope_and_intercept_of_each_slice(tmp_path):
    images = levels(3, 4, 5)
    for index, (slope, intercept) in enumerate([(1, -1024), (0.5, 0), (2.25, 3)]):
        save(tmp_path / f"{index}", images[index], (0, 0, index), RescaleSlope=slope, RescaleIntercept=intercept)
    found = read_volume(tmp_path).data[::-1, ::-1].T
    expected = images * np.array((1, 0.5, 2.25))[:, None, None] + np.array((-1024, 0, 3))[:, None, None]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("tags", "units"),
    [
        ({}, "HU"), ({"Modality": "MR"}, ""), ({"RescaleType": "US"}, ""), ({"RescaleType": "MGML"}, "MGML"),
    ],
)  # fmt: skip
def test_units(tmp_path, tags, units):
    assert read_volume(series(tmp_path, levels(2, 4, 5), **tags)).units == units


def test_signed_pixels_without_rescaling(tmp_path):
    images = levels(2, 4, 5).astype(np.int16) - 2000
    volume = read_volume(series(tmp_path, images, Modality="MR", RescaleSlope=None, RescaleIntercept=None))
    np.testing.assert_array_equal(volume.data[::-1, ::-1].T, images)


def test_sub_folders_are_searched_and_other_files_ignored(tmp_path):
    images = levels(4, 4, 5)
    save(tmp_path / "a" / "x", images[0], (0, 0, 0))
    for index in (1, 2, 3):
        save(tmp_path / "b" / "c" / f"{index}.IMA", images[index], (0, 0, index))
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "empty.dcm").touch()
    report = dcmread(tmp_path / "a" / "x")
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.SeriesInstanceUID, report.SOPClassUID = "1.2.3.99", BasicTextSRStorage
    report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.save_as(tmp_path / "report.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).data[::-1, ::-1].T, images - 1024.0)


def test_tilted_gantry_and_rounded_positions(tmp_path):
    images = levels(9, 4, 5)
    for index, image in enumerate(images):
        save(tmp_path / f"{index}", image, (0, round(0.2 * index, 1), round(0.625 * index, 1)))
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.affine[:3, 2], (0, -0.2, 0.625))
    np.testing.assert_array_equal(volume.data[::-1, ::-1].T, images - 1024.0)


def test_one_slice_is_as_thick_as_it_says(tmp_path):
    save(tmp_path / "0", levels(4, 5), (0, 0, 0))
    np.testing.assert_allclose(read_volume(tmp_path).voxel_size, (0.7, 0.5, 1.25))
    save(tmp_path / "0", levels(4, 5), (0, 0, 0), SliceThickness=None)
    refuse(tmp_path, "0 has no SliceThickness")


def test_one_series_of_several(tmp_path):
    images = levels(3, 6, 4, 5)
    series(tmp_path / "a", images[0])
    series(tmp_path / "b", images[1, :2], series="1.2.3.2", SeriesNumber=7, SeriesDescription=None)
    for choice, expected in (("2", images[0]), ("7", images[1, :2]), ("1.2.3.2", images[1, :2])):
        np.testing.assert_array_equal(read_volume(f"{tmp_path}:{choice}").data[::-1, ::-1].T, expected - 1024.0)
    there = r"available series: 2 \(thorax, 6 slices\), 7 \(no description, 2 slices\)$"
    refuse(tmp_path, f"2 series; choose one as {tmp_path}:NUMBER; {there}")
    refuse(f"{tmp_path}:3", f"no series 3; choose one as {tmp_path}:NUMBER; {there}")
    series(tmp_path / "c", images[2], series="1.2.3.3")  # has the number of the first
    refuse(f"{tmp_path}:2", r"no series 2; .* 1\.2\.3\.1 \(thorax, 6 slices\), 7 .*, 1\.2\.3\.3 \(thorax, 6 slices\)")
    np.testing.assert_array_equal(read_volume(f"{tmp_path}:1.2.3.3").data[::-1, ::-1].T, images[2] - 1024.0)


# --- bad series -----------------------------------------------------------------------------------------------


def refuse(path: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"volume {str(path).partition(':')[0]}: ")
    assert "\n" not in str(caught.value)


SLICE = levels(4, 5)
OTHER_ORIENTATION = r"ImageOrientationPatient is \[1.0, .* in \S+0.dcm and \[0.0, 1.0.* in \S+2.dcm"
OTHER_PIXELS = r"PixelSpacing is \[0.5, 0.7\] in \S+0.dcm and \[0.5, 0.8\] in \S+2.dcm"
# Changes to one slice of a good series at z = 0, 2, 4, 6, 8, 10 mm; the slice at 4 mm is in 2.dcm.
BAD = {
    "position twice": ({"ImagePositionPatient": [0, 0, 6]}, r"2.dcm and \S+3.dcm are at the same position .1 "),
    "between two others": ({"ImagePositionPatient": [0, 0, 5]}, "2.dcm is 1 mm off, slices are 2 mm apart"),
    "a little off": ({"ImagePositionPatient": [0, 0, 4.4]}, "2.dcm is 0.4 mm off, slices are 2 mm apart"),
    "off to the side": ({"ImagePositionPatient": [0.5, 0, 4]}, "2.dcm is 0.5 mm off, slices are 2 mm apart"),
    "no position": ({"ImagePositionPatient": None}, "2.dcm has no ImagePositionPatient"),
    "half a position": ({"ImagePositionPatient": [0, 4]}, "2.dcm has no ImagePositionPatient"),
    "empty position": ({"ImagePositionPatient": ""}, "2.dcm has no ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "2.dcm has no ImageOrientationPatient"),
    "no pixel size": ({"PixelSpacing": None}, "2.dcm has no PixelSpacing"),
    "other orientation": ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, OTHER_ORIENTATION),
    "other pixel size": ({"PixelSpacing": [0.5, 0.8]}, OTHER_PIXELS),
    "several frames": ({"NumberOfFrames": 4}, "2.dcm is multi-frame DICOM; convert it"),
    "enhanced": ({"SharedFunctionalGroupsSequence": []}, "2.dcm is multi-frame DICOM; convert it"),
    "colour": ({"SamplesPerPixel": 3}, "2.dcm is a colour image"),
    "too few pixels": ({"PixelData": b"\0" * 10}, "pixels of .*2.dcm cannot be read"),
    "no pixels": ({"PixelData": None}, "pixels of .*2.dcm cannot be read"),
    "infinite slope": ({"RescaleSlope": 1e300}, "voxels are NaN or infinite"),
}  # fmt: skip


def six(folder: Path) -> Path:
    for index in range(6):
        save(folder / f"{index}.dcm", SLICE, (0, 0, 2 * index))
    return folder


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore:.*pixel data.*")
def test_bad_slice(tmp_path, kind):
    tags, message = BAD[kind]
    save(six(tmp_path) / "2.dcm", SLICE, (0, 0, 4), **tags)
    refuse(tmp_path, message)


@pytest.mark.parametrize(("missing", "message"), [
    ((3,), r"2.dcm and \S+4.dcm are 4 mm apart, other slices 2 mm; 1 slices are missing there"),
    ((2, 3), r"1.dcm and \S+4.dcm are 6 mm apart, other slices 2 mm; 2 slices are missing there"),
])  # fmt: skip
def test_missing_slices(tmp_path, missing, message):
    six(tmp_path)
    for index in missing:
        (tmp_path / f"{index}.dcm").unlink()
    refuse(tmp_path, message)


@pytest.mark.parametrize("copies", [2, 3])
def test_every_position_several_times(tmp_path, copies):
    for copy in range(copies):
        six(tmp_path / str(copy))
    refuse(tmp_path, f"are at the same position .{6 * (copies - 1)} such pairs")


def test_other_size(tmp_path):
    save(six(tmp_path) / "2.dcm", levels(4, 6), (0, 0, 4))
    refuse(tmp_path, r"Columns is \[5.0\] in \S+0.dcm and \[6.0\] in \S+2.dcm; expected the same in all slices")


@pytest.mark.parametrize(("tags", "message"), [
    ({"PixelSpacing": [0.0, 0.7]}, "PixelSpacing .0.0, 0.7., expected mm above 0"),
    ({"PixelSpacing": [0.5, -0.7]}, "PixelSpacing .0.5, -0.7., expected mm above 0"),
    ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "expected two perpendicular unit vectors"),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "expected two perpendicular unit vectors"),
])  # fmt: skip
def test_geometry_that_is_none(tmp_path, tags, message):
    refuse(series(tmp_path, levels(3, 4, 5), **tags), message)


def test_constant_series(tmp_path):
    refuse(series(tmp_path, np.full((3, 4, 5), 7, np.uint16)), "all voxels have the same value")


@pytest.mark.parametrize("length", [140, 200, 450, 700, 900, -10])
def test_damaged_file(tmp_path, length):
    """Wherever the file is cut off, the volume does not silently lose its last slice."""
    path = six(tmp_path) / "5.dcm"
    path.write_bytes(path.read_bytes()[:length])
    refuse(tmp_path, "5.dcm")


@pytest.mark.parametrize(("syntax", "advice"), [
    (JPEGLSLossless, r'JPEG-LS Lossless Image Compression; pip install "pylibjpeg\[all\]"'),
    (MPEG2MPML, "MPEG2 Main Profile / Main Level; save the files uncompressed first"),
])  # fmt: skip
def test_compression_without_a_decoder(tmp_path, syntax, advice):
    if syntax == JPEGLSLossless and get_decoder(syntax).is_available:
        pytest.skip("there is a decoder")
    header = dcmread(six(tmp_path) / "2.dcm")
    header.PixelData = encapsulate([b"\0" * 64])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(tmp_path / "2.dcm")
    refuse(tmp_path, f"no decoder for {advice}")


# --- writing --------------------------------------------------------------------------------------------------


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        turn[[a, b, a, b], [a, b, b, a]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


VALUES = arrays(np.float32, st.tuples(*[st.integers(2, 5)] * 3), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60)
@given(
    data=VALUES.filter(lambda data: np.ptp(data) > 1e-3),
    size=st.tuples(*[st.floats(0.1, 9)] * 3),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    mirrored=st.booleans(),
)
def test_a_written_volume_is_read_back(tmp_path_factory, data, size, angles, mirrored):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * size * (1, 1, -1 if mirrored else 1)
    affine[:3, 3] = (-20.123456789, 31, 7)
    expected = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    folder = tmp_path_factory.mktemp("series") / "dicom"
    write_dicom(folder, data, affine)
    volume = read_volume(folder)
    step = np.ptp(data) / 65535
    np.testing.assert_allclose(volume.data, expected.dataobj, rtol=1e-6, atol=0.51 * step)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_images_are_written_upright(tmp_path, orientation):
    """As radiologists look at them: left side of the patient on the right, front or top up."""
    row, column = np.array(orientation, float)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.column_stack([-row, -column, -np.cross(row, column)])
    write_dicom(tmp_path / "dicom", levels(6, 4, 5).astype(np.float32), affine)
    files = sorted((tmp_path / "dicom").iterdir())
    assert [path.name for path in files] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm", "0005.dcm"]
    first, second = (dcmread(path) for path in files[:2])
    assert (first.Rows, first.Columns) == (4, 6)
    np.testing.assert_allclose(first.ImageOrientationPatient, np.ravel(orientation), atol=1e-9)
    step = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient)
    np.testing.assert_allclose(step, np.cross(row, column), atol=1e-9)


def test_headers_of_a_derived_series(tmp_path):
    source = read_volume(series(tmp_path / "ct", levels(3, 4, 5), WindowCenter=40, WindowWidth=400, KVP=120))
    write_dicom(tmp_path / "dicom", source.data, source.affine, source.header, "sv_ct d3ip", identify=True)
    headers = [dcmread(path) for path in (tmp_path / "dicom").iterdir()]
    original = dcmread(tmp_path / "ct" / "0.dcm")
    for header in headers:
        assert list(header.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "Modality", "WindowWidth"):
            assert header[tag].value == original[tag].value
        assert (header.SOPClassUID, header.file_meta.MediaStorageSOPClassUID) == (CTImageStorage, CTImageStorage)
        assert header.SOPInstanceUID == header.file_meta.MediaStorageSOPInstanceUID
        assert header.SeriesInstanceUID == headers[0].SeriesInstanceUID != original.SeriesInstanceUID
        assert (header.SeriesDescription, header.RescaleType) == ("sv_ct d3ip", "HU")
        assert (header.BitsStored, header.PixelRepresentation, header.SliceThickness) == (16, 0, 2.5)
        assert "ConversionType" not in header
        assert str(header.PatientName) == "Müller^Anna"
    assert len({header.SOPInstanceUID for header in headers}) == 3
    assert {header.InstanceNumber for header in headers} == {1, 2, 3}
    assert read_volume(tmp_path / "dicom").units == "HU"
    write_dicom(tmp_path / "again", source.data, source.affine, source.header)
    assert dcmread(tmp_path / "again" / "0001.dcm").SeriesInstanceUID != headers[0].SeriesInstanceUID
    refuse(tmp_path, "3 series; .* 2 .thorax, 3 slices.")  # the source and the derived series are separate


def test_headers_without_a_source(tmp_path):
    write_dicom(tmp_path / "dicom", levels(3, 4, 5).astype(np.float32), np.eye(4), description="σ größer " * 20)
    header = dcmread(tmp_path / "dicom" / "0001.dcm")
    assert (header.SOPClassUID, header.Modality) == (SecondaryCaptureImageStorage, "OT")
    assert (str(header.PatientName), header.PatientID, header.RescaleType) == ("", "", "US")
    assert header.SeriesDescription == ("σ größer " * 20)[:64].strip()
    assert header.StudyInstanceUID != header.SeriesInstanceUID


def test_an_mr_series_stays_one(tmp_path):
    tags = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}
    source = read_volume(series(tmp_path / "mr", levels(3, 4, 5), **tags, EchoTime=2.97))
    write_dicom(tmp_path / "dicom", source.data, source.affine, source.header)
    header = dcmread(tmp_path / "dicom" / "0001.dcm")
    assert (header.SOPClassUID, header.Modality, header.EchoTime) == (MRImageStorage, "MR", 2.97)


@pytest.mark.parametrize("whole", [True, False])
def test_slope_and_intercept_are_not_part_of_mr_images(tmp_path, whole):
    """Unless whole numbers are too coarse, or the source has them."""
    tags = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}
    source = read_volume(series(tmp_path / "mr", levels(3, 4, 5), **tags))
    data = source.data - 7.3 if whole else source.data / 100
    write_dicom(tmp_path / "dicom", data, source.affine, source.header)
    headers = [dcmread(path) for path in (tmp_path / "dicom").iterdir()]
    for tag in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        assert all((tag not in header) == whole for header in headers)
    error = np.abs(read_volume(tmp_path / "dicom").data - data).max()
    assert error <= (0.5 if whole else 41 / 65535)


def test_a_derived_series_names_its_sources_and_the_software(tmp_path):
    source = read_volume(series(tmp_path / "ct", levels(3, 4, 5)))
    write_dicom(tmp_path / "dicom", source.data[..., :2], source.affine, source.header, identify=True)
    header = dcmread(tmp_path / "dicom" / "0002.dcm")
    named = {item.ReferencedSOPInstanceUID for item in header.SourceImageSequence}
    assert named == {dcmread(path).SOPInstanceUID for path in (tmp_path / "ct").iterdir()}
    assert {item.ReferencedSOPClassUID for item in header.SourceImageSequence} == {CTImageStorage}
    [software] = header.ContributingEquipmentSequence
    assert (software.ManufacturerModelName, software.SoftwareVersions) == ("ddip-pl", version("ddip-pl"))


def blank(folder: Path, **tags: str) -> None:
    """Change attributes of all files in a folder, whatever the standard says; their file meta stays."""
    for path in folder.iterdir():
        header = dcmread(path)
        for tag, value in tags.items():
            setattr(header, tag, value)
        header.save_as(path, enforce_file_format=False)


def test_identifiers_that_a_source_lacks(tmp_path):
    """The class of its images is in the file meta too; study and frame of reference are new."""
    blank(series(tmp_path / "ct", levels(3, 4, 5)), SOPClassUID="", StudyInstanceUID="", FrameOfReferenceUID="")
    source = read_volume(tmp_path / "ct")
    check_writable(source.affine, source.header)
    write_dicom(tmp_path / "dicom", source.data, source.affine, source.header)
    headers = [dcmread(path) for path in (tmp_path / "dicom").iterdir()]
    assert {header.SOPClassUID for header in headers} == {CTImageStorage}
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({header[tag].value for header in headers}) == 1
        assert headers[0][tag].value


def test_a_source_that_nothing_can_be_derived_from_is_refused_before_the_run(tmp_path):
    source = read_volume(series(tmp_path / "ct", levels(3, 4, 5)))
    source.header.SOPClassUID = ""
    with pytest.raises(InputError, match=r"no DICOM series can be derived from this source \(.+\); leave out --dicom"):
        check_writable(source.affine, source.header)


MR = {
    "Modality": "MR", "SOPClassUID": MRImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "M"], "RescaleSlope": None,
    "RescaleIntercept": None, "ScanningSequence": "GR", "SequenceVariant": "SP", "EchoTime": 3, "RepetitionTime": 8,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["CT", "MR", "no source"])
def test_dciodvfy_finds_no_errors(tmp_path, kind):
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    source = read_volume(series(tmp_path / "source", levels(3, 4, 5), **(MR if kind == "MR" else {})))
    header = None if kind == "no source" else source.header
    write_dicom(tmp_path / "dicom", source.data, source.affine, header, "sv_ct dds")
    for path in (tmp_path / "dicom").iterdir():
        report = subprocess.run([validator, "-new", path], capture_output=True, text=True)
        lines = (report.stdout + report.stderr).splitlines()
        assert {"CT": "CTImage", "MR": "MRImage", "no source": "SCImage"}[kind] in lines
        assert [line for line in lines if line.startswith("Error")] == []


def test_a_constant_volume_can_be_written(tmp_path):
    write_dicom(tmp_path / "dicom", np.full((3, 4, 5), 7.5, np.float32), np.eye(4))
    header = dcmread(tmp_path / "dicom" / "0001.dcm")
    np.testing.assert_array_equal(header.pixel_array * header.RescaleSlope + header.RescaleIntercept, 7.5)


def test_rows_and_columns_must_be_perpendicular(tmp_path):
    affine = np.eye(4)
    affine[0, 2] = 0.3  # sheared slices do no harm
    check_writable(affine)
    affine[0, 1] = 0.3
    with pytest.raises(InputError, match="not perpendicular"):
        write_dicom(tmp_path / "dicom", levels(3, 4, 5), affine)
    assert not (tmp_path / "dicom").exists()
