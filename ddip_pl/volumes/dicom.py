"""Reads volumes from DICOM series, and writes volumes as derived series."""

import datetime
import io
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from einops import rearrange
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.misc import is_dicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from ddip_pl.errors import InputError, reason
from ddip_pl.volumes.claims import check_claim
from ddip_pl.volumes.deidentify import deidentified
from ddip_pl.volumes.volume import Volume, as_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point to the patient's left and back
OFF = 0.1  # tolerance of slice positions, as a fraction of the spacing; files often round them
# Directions of columns, rows and slices that show images upright, by the direction of the slices.
UPRIGHT = {"S": "LPS", "I": "LPS", "A": "LIP", "P": "LIP", "L": "PIR", "R": "PIR"}
# Attributes that a derived series shares with its source: patient, study, frame of reference, acquisition.
COMMON = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
    "PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "Modality", "SOPClassUID", "Manufacturer",
    "ManufacturerModelName", "ProtocolName", "AcquisitionNumber", "KVP", "ScanningSequence", "SequenceVariant",
    "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime", "EchoTrainLength", "FlipAngle",
    "MagneticFieldStrength", "RescaleType", "Laterality", "SourceImageSequence", "WindowCenter", "WindowWidth",
)  # fmt: skip
# Attributes that must be present but may be empty.
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer", "Laterality",
)  # fmt: skip
EMPTY_OF = {
    CTImageStorage: ("KVP", "AcquisitionNumber", "PatientPosition"),
    MRImageStorage: (
        "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength", "PatientPosition",
    ),
}  # fmt: skip
KIND = {CTImageStorage: "AXIAL", MRImageStorage: "OTHER"}  # third value of ImageType, if the source has none
COARSE, LARGEST = 1000, 2**15 - 1  # an image with a maximum between these is written as whole numbers
HEAD_FOOT = str.maketrans("SI", "HF")  # DICOM's letters for the directions up and down


def read_dicom(folder: Path, series: str = "") -> Volume:
    """Read a series of single-frame DICOM images from a folder and its sub-folders; other files are ignored.

    Slices are sorted by position, which also gives the slice spacing. Values are rescaled (CT: HU).

    Args:
        folder: with the files.
        series: number or UID of the series, needed if there are several.

    Raises:
        InputError: there is no series, or several to choose from; slices are missing, duplicated, inconsistent or
            without a position; pixels cannot be decoded; or see `as_volume`.
    """
    try:
        headers, affine = arrange(choose(folder, series))
        for syntax in {header.file_meta.TransferSyntaxUID for header in headers}:
            check_decoder(syntax)
        data = np.stack([pixels(header) for header in headers], axis=2)
    except InputError as error:
        raise InputError(f"volume {folder}: {error}") from error
    return as_volume(folder, data, affine, units(headers[0]), with_sources(headers))


def with_sources(headers: Sequence[Dataset]) -> Dataset:
    """The first header, with a reference to every image of the series."""
    header, sources = headers[0], []
    for image in headers:
        source = Dataset()
        source.ReferencedSOPClassUID = image.get("SOPClassUID") or image.file_meta.MediaStorageSOPClassUID
        source.ReferencedSOPInstanceUID = image.get("SOPInstanceUID") or image.file_meta.MediaStorageSOPInstanceUID
        source.PurposeOfReferenceCodeSequence = [coded(codes.DCM.SourceImageForImageProcessingOperation)]
        sources.append(source)
    header.SOPClassUID, header.SourceImageSequence = sources[0].ReferencedSOPClassUID, sources
    return header


def coded(code: Code) -> Dataset:
    """The item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def choose(folder: Path, series: str) -> list[Dataset]:
    """Headers of all slices of the chosen series, see `read_dicom`."""
    found: dict[str, list[Dataset]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_dicom(path):
            try:
                header = dcmread(path, stop_before_pixels=True)
                if "Rows" in header or "Image Storage" in header.file_meta.MediaStorageSOPClassUID.name:
                    found.setdefault(str(header.SeriesInstanceUID), []).append(header)  # not a report or directory
            except Exception as error:  # on a damaged file the reader may raise anything
                raise InputError(f"{path} is not a readable DICOM file ({reason(error)})") from error
    if not found:
        raise InputError("no DICOM images and no .npy slices in this folder")
    numbers = [str(headers[0].get("SeriesNumber")) for headers in found.values()]
    names = [number if numbers.count(number) == 1 else uid for number, uid in zip(numbers, found, strict=True)]
    chosen = [headers for name, (uid, headers) in zip(names, found.items(), strict=True) if series in (name, uid)]
    if chosen or (len(found) == 1 and not series):
        return (chosen or list(found.values()))[0]
    available = ", ".join(
        f"{name} ({headers[0].get('SeriesDescription') or 'no description'}, {len(headers)} slices)"
        for name, headers in zip(names, found.values(), strict=True)
    )
    wanted = f"no series {series}" if series else f"{len(found)} series"
    raise InputError(f"{wanted}; choose one as {folder}:NUMBER; available series: {available}")


def arrange(headers: Sequence[Dataset]) -> tuple[list[Dataset], np.ndarray]:
    """Slices sorted by position, and the affine `(4, 4)` from (column, row, slice) to mm (RAS+)."""
    for header in headers:
        if "SharedFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{header.filename} is multi-frame DICOM; convert it to NIfTI first")
        if header.get("SamplesPerPixel", 1) != 1:
            raise InputError(f"{header.filename} is a colour image, expected greyscale")
    common = {}
    for tag, count in {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}.items():
        values = [numbers(header, tag, count) for header in headers]
        for value, header in zip(values, headers, strict=True):
            if not np.allclose(value, values[0], rtol=0, atol=1e-3):
                here, there = (
                    f"{one.tolist()} in {of.filename}" for one, of in ((values[0], headers[0]), (value, header))
                )
                raise InputError(f"{tag} is {here} and {there}; expected the same in all slices")
        common[tag] = values[0]
    row, column = common["ImageOrientationPatient"].reshape(2, 3)
    if not np.allclose((row @ row, column @ column, row @ column), (1, 1, 0), atol=1e-2):
        raise InputError(f"ImageOrientationPatient {[*row, *column]}, expected two perpendicular unit vectors")
    spacing = common["PixelSpacing"]
    if not (spacing > 0).all():
        raise InputError(f"PixelSpacing {spacing.tolist()}, expected mm above 0")

    positions = np.array([numbers(header, "ImagePositionPatient", 3) for header in headers])
    normal = np.cross(row, column)
    order = np.argsort(positions @ normal, kind="stable")
    headers, positions = [headers[i] for i in order], positions[order]
    if len(headers) > 1:
        step = (positions[-1] - positions[0]) / (len(headers) - 1)
        check_regular(headers, positions, step, normal)
    else:
        step = normal * numbers(headers[0], "SliceThickness", 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * spacing[1], column * spacing[0], step, positions[0]])
    return headers, LPS @ affine


def check_regular(headers: Sequence[Dataset], positions: np.ndarray, step: np.ndarray, normal: np.ndarray) -> None:
    """Refuse sorted slices that are duplicated, missing or not regularly spaced."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    same = gaps < 1e-3
    between = [f"{a.filename} and {b.filename}" for a, b in pairwise(headers)]
    if same.any():
        raise InputError(
            f"{between[same.argmax()]} are at the same position ({same.sum()} such pairs); remove one of each"
        )
    if (gap := gaps.max()) > 1.5 * usual:
        apart = f"{between[gaps.argmax()]} are {gap:.4g} mm apart, other slices {usual:.4g} mm"
        raise InputError(f"{apart}; {round(gap / usual) - 1} slices are missing there")
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if off.max() > OFF * usual:
        raise InputError(
            f"slices are not regularly spaced: {headers[int(off.argmax())].filename} is {off.max():.3g} mm off, "
            f"slices are {usual:.4g} mm apart; resample them first"
        )


def numbers(header: Dataset, tag: str, count: int) -> np.ndarray:
    """Values of an attribute that must be present."""
    try:
        values = np.array(header.get(tag), dtype=float).reshape(count)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise InputError(f"{header.filename} has no {tag}; without it the slice cannot be placed in a volume")
    return values


def check_decoder(syntax: UID) -> None:
    """Refuse a compression that no installed package can decode."""
    try:
        if not get_decoder(syntax).is_available:
            raise InputError(f'no decoder for {syntax.name}; pip install "pylibjpeg[all]"')
    except NotImplementedError as error:
        raise InputError(f"no decoder for {syntax.name}; save the files uncompressed first") from error


def pixels(header: Dataset) -> np.ndarray:
    """Rescaled values of a slice, `(columns, rows)` float32."""
    try:
        image = dcmread(str(header.filename))
        claimed = image.Rows * image.Columns * image.BitsAllocated // 8
        check_claim(claimed, os.path.getsize(header.filename), "the header")
        with np.errstate(over="ignore"):  # `as_volume` refuses infinite values
            return apply_modality_lut(image.pixel_array, image).T.astype(np.float32)
    except Exception as error:  # as above
        raise InputError(f"pixels of {header.filename} cannot be read ({reason(error)})") from error


def check_writable(affine: np.ndarray, source: Dataset | None = None) -> None:
    """Refuse what DICOM cannot express, or cannot be derived from the source; writes a small image to memory.

    Raises:
        InputError: rows and columns are not perpendicular, or a header cannot be written.
    """
    row, column = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
    if abs(row @ column) > 1e-4:
        raise InputError(
            "rows and columns of the volume are not perpendicular, which DICOM cannot express; leave out --dicom"
        )
    try:
        for image in derived_images(np.zeros((2, 2, 1)), affine, source, ""):
            image.save_as(io.BytesIO(), enforce_file_format=True)
    except Exception as error:  # on a damaged header the writer may raise anything
        raise InputError(
            f"no DICOM series can be derived from this source ({reason(error)}); leave out --dicom"
        ) from error


def write_dicom(
    folder: str | Path,
    data: np.ndarray,
    affine: np.ndarray,
    source: Dataset | None = None,
    description: str = "",
    identify: bool = False,
    software: Sequence[str] = (),
) -> None:
    """Write a volume as a derived DICOM series: a new folder with `0001.dcm`, `0002.dcm`, ...

    Images are turned upright. Values are rounded to 65536 levels between the smallest and the largest; those of an MR
    series without slope and intercept, to whole numbers if they are large enough.

    Args:
        folder: for the files; it must not exist.
        data: `(columns, rows, slices)`, in any orientation.
        affine: `(4, 4)`, from indices of `data` to scanner coordinates in mm (RAS+).
        source: header of a slice of the series that the volume is derived from; the new series gets its acquisition.
            Without one the images are secondary captures without a patient.
        description: of the series and how it was derived.
        identify: the new series gets the patient, study and frame of reference of the source too, see `deidentified`.
        software: what made it, as `SoftwareVersions`.

    Raises:
        InputError: see `check_writable`.
    """
    check_writable(affine, source)
    Path(folder).mkdir()
    for index, image in enumerate(derived_images(data, affine, source, description, identify, software)):
        image.save_as(Path(folder, f"{index + 1:04d}.dcm"), enforce_file_format=True)


def derived_images(
    data: np.ndarray,
    affine: np.ndarray,
    source: Dataset | None,
    description: str,
    identify: bool = False,
    software: Sequence[str] = (),
) -> Iterator[Dataset]:
    """The images of a derived series, see `write_dicom`."""
    upright = UPRIGHT[nib.aff2axcodes(affine)[2]]  # type: ignore[attr-defined]
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(upright))
    affine = LPS @ affine @ inv_ornt_aff(turn, data.shape)
    data = apply_orientation(data, turn)
    common = derived_header(source, description)
    if not identify:
        common = deidentified(common, (*EMPTY, *EMPTY_OF.get(common.SOPClassUID, ())))
    if software:
        common.SoftwareVersions = list(software)
    whole = common.SOPClassUID == MRImageStorage and "RescaleSlope" not in (source or {})
    whole = whole and COARSE <= np.abs(data).max() <= LARGEST  # slope and intercept are not part of MR images
    low = 0.0 if whole else rounded(data.min())
    slope = 1.0 if whole else rounded((data.max() - low) / 65535) or 1.0
    kind = np.iinfo(np.int16 if whole else np.uint16)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    row, column, _ = (affine[:3, :3] / lengths).T
    common.ImageOrientationPatient = [rounded(value) for value in (*row, *column)]
    common.PixelSpacing = [rounded(lengths[1]), rounded(lengths[0])]
    common.SliceThickness = common.SpacingBetweenSlices = rounded(abs(np.cross(row, column) @ affine[:3, 2]))
    if not whole:
        common.RescaleIntercept, common.RescaleSlope = low, slope
        common.RescaleType = units(common) or "US"
    if source is None:
        common.PatientOrientation = list(upright[:2].translate(HEAD_FOOT))
    for index, image in enumerate(rearrange(data, "columns rows slices -> slices rows columns")):
        stored = np.clip(np.rint((image.astype(np.float64) - low) / slope), kind.min, kind.max).astype(kind.dtype)
        slice_ = Dataset()
        slice_.update(common)
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.InstanceNumber = index + 1
        slice_.ImagePositionPatient = [rounded(value) for value in affine[:3] @ (0, 0, index, 1)]
        slice_.set_pixel_data(np.ascontiguousarray(stored), "MONOCHROME2", 16)
        yield slice_


def derived_header(source: Dataset | None, description: str) -> Dataset:
    """Attributes that all slices of a derived series share, except geometry and scale."""
    header, now = Dataset(), datetime.datetime.now()
    for tag in EMPTY:
        setattr(header, tag, "")
    if source is None:
        header.SOPClassUID, header.Modality, header.ConversionType = SecondaryCaptureImageStorage, "OT", "WSD"
        header.StudyInstanceUID, header.FrameOfReferenceUID = generate_uid(), generate_uid()
    else:
        for tag in COMMON:
            if tag in source:
                header[tag] = source[tag]
        for tag in EMPTY_OF.get(header.SOPClassUID, ()):
            if tag not in header:
                setattr(header, tag, None)
        header.StudyInstanceUID = source.get("StudyInstanceUID") or generate_uid()
        header.FrameOfReferenceUID = source.get("FrameOfReferenceUID") or generate_uid()
    header.SpecificCharacterSet = "ISO_IR 192"
    given = [] if source is None else [*source.get("ImageType", ())]
    third = given[2:3] or [KIND[uid] for uid in KIND if uid == header.SOPClassUID]
    header.ImageType = ["DERIVED", "SECONDARY", *third]
    header.SeriesInstanceUID, header.SeriesNumber = generate_uid(), 1000
    header.SeriesDescription, header.DerivationDescription = description[:64], description[:1024]
    header.SeriesDate = header.ContentDate = now.strftime("%Y%m%d")
    header.SeriesTime = header.ContentTime = now.strftime("%H%M%S")
    software = Dataset()
    software.Manufacturer = software.ManufacturerModelName = "ddip-pl"
    software.SoftwareVersions, software.ContributionDateTime = version("ddip-pl"), now.strftime("%Y%m%d%H%M%S")
    software.PurposeOfReferenceCodeSequence = [coded(codes.DCM.ProcessingEquipment)]
    header.ContributingEquipmentSequence = [software]
    return header


def units(header: Dataset) -> str:
    """Units of the rescaled values; empty if the header does not give them."""
    rescaled = str(header.get("RescaleType") or ("HU" if header.get("Modality") == "CT" else ""))
    return "" if rescaled == "US" else rescaled  # US: unspecified


def rounded(value: float) -> float:
    """A number as DICOM stores it, in at most 16 characters."""
    return float(format_number_as_ds(float(value)))
