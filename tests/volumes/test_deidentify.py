"""DICOM output without the patient: nothing of the source that could identify it is in the files, byte for byte."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import UID, MRImageStorage

from ddip_pl.volumes import dicom
from ddip_pl.volumes.deidentify import HARMLESS, deidentified
from ddip_pl.volumes.dicom import write_dicom

SECRET = {
    "PN": "Zzyzx^Anna", "DA": "19661231", "DT": "19661231235959", "TM": "235959", "AS": "057Y", "UI": "1.2.3.66612.31",
    "LO": "Zzyzx", "LT": "Zzyzx", "SH": "Zzyzx", "ST": "Zzyzx", "UC": "Zzyzx", "UT": "Zzyzx", "UR": "http://Zzyzx",
}  # fmt: skip
FINGERPRINTS = (b"Zzyzx", b"19661231", b"235959", b"057Y", b"1.2.3.66612", b"93.75", b"1.625")
# A selection of table E.1-1 of PS3.15: attributes that the Basic Profile removes, empties or replaces.
LISTED = (
    "AccessionNumber", "AcquisitionDate", "AcquisitionDateTime", "AcquisitionTime", "AdmissionID", "Allergies",
    "BranchOfService", "ContentDate", "ContentTime", "CountryOfResidence", "CurrentPatientLocation",
    "DetectorID", "DeviceSerialNumber", "DeviceUID", "EthnicGroup", "FrameOfReferenceUID", "GantryID", "ImageComments",
    "InstanceCreatorUID", "InstitutionAddress", "InstitutionName", "InstitutionalDepartmentName", "IssuerOfPatientID",
    "MedicalAlerts", "MilitaryRank", "NameOfPhysiciansReadingStudy", "Occupation",
    "OperatorsName", "OtherPatientNames", "PatientAddress", "PatientAge", "PatientBirthDate",
    "PatientBirthName", "PatientBirthTime", "PatientComments", "PatientID", "PatientMotherBirthName", "PatientName",
    "PatientReligiousPreference", "PatientTelephoneNumbers", "PerformedProcedureStepDescription",
    "PerformedProcedureStepID", "PerformedProcedureStepStartDate", "PerformingPhysicianName", "PhysiciansOfRecord",
    "PlateID", "ProtocolName", "ReferringPhysicianAddress", "ReferringPhysicianName",
    "RequestedProcedureDescription", "RequestingPhysician", "RequestingService", "ReviewerName",
    "ScheduledProcedureStepDescription", "SeriesDate", "SeriesTime", "SpecialNeeds", "StationName",
    "StudyDate", "StudyDescription", "StudyID", "StudyInstanceUID", "StudyTime", "TimezoneOffsetFromUTC",
)  # fmt: skip


def scan() -> Dataset:
    """The header of an MR slice in which every name, date, time, text and UID that DICOM knows is a secret."""
    header = Dataset()
    for tag, (kind, *_, retired, keyword) in DicomDictionary.items():
        if keyword and not retired and kind in SECRET and tag >> 16 not in (0x0000, 0x0002):
            setattr(header, keyword, SECRET[kind])
    header.SOPClassUID, header.Modality, header.EchoTime = MRImageStorage, "MR", 2.5
    header.FrameOfReferenceUID, header.Manufacturer, header.ManufacturerModelName = "1.2.3.66612.32", "Mine", "One"
    for name in HARMLESS:
        if header.get(name) == "Zzyzx":
            delattr(header, name)
    header.PatientSex, header.PatientWeight, header.PatientSize = "F", "93.75", "1.625"
    header.SpecificCharacterSet, header.BodyPartExamined = "ISO_IR 192", "HEAD"
    header.private_block(0x0011, "Zzyzx maker", create=True).add_new(1, "LO", "Zzyzx")
    del header.TimezoneOffsetFromUTC  # of another form
    return header


def write(folder: Path, source: Dataset, **settings: bool) -> list[Path]:
    data = np.random.default_rng(0).random((6, 5, 2), dtype=np.float32)
    write_dicom(folder, data, np.eye(4), source, "sv_ct d3ip", **settings)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("everything", [False, True])
def test_no_byte_of_the_patient_is_in_the_files(
    tmp_path: Path, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a series copied every attribute of its source."""
    source = scan()
    if everything:
        copied = [element.keyword for element in source if element.keyword]
        monkeypatch.setattr(dicom, "COMMON", tuple(copied))
    for path in write(tmp_path / "dicom", source):
        content = path.read_bytes()
        assert [secret for secret in FINGERPRINTS if secret in content] == []
        header = dcmread(path)
        assert not header.get("PatientSex")
        assert (header.PatientIdentityRemoved, header.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
        assert [item.CodeValue for item in header.DeidentificationMethodCodeSequence] == ["113100"]


def test_what_is_not_about_the_patient_stays(tmp_path: Path) -> None:
    first, second = (dcmread(path) for path in write(tmp_path / "dicom", scan()))
    assert (first.Modality, first.EchoTime, first.BodyPartExamined) == ("MR", 2.5, "HEAD")
    assert (first.Manufacturer, first.ManufacturerModelName) == ("Mine", "One")
    assert (first.SOPClassUID, first.SeriesDescription) == (MRImageStorage, "sv_ct d3ip")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert first[name].value == second[name].value
        assert UID(first[name].value).is_valid
    assert len({first.StudyInstanceUID, first.SeriesInstanceUID, first.FrameOfReferenceUID}) == 3
    for name in ("PatientName", "PatientID", "StudyDate", "AccessionNumber"):  # must be there, without a value
        assert name in first
        assert not first[name].value


def test_identify_keeps_patient_and_study(tmp_path: Path) -> None:
    for path in write(tmp_path / "dicom", scan(), identify=True):
        header = dcmread(path)
        assert (str(header.PatientName), header.PatientID, header.StudyDate) == ("Zzyzx^Anna", "Zzyzx", "19661231")
        assert (header.StudyInstanceUID, header.FrameOfReferenceUID) == ("1.2.3.66612.31", "1.2.3.66612.32")
        assert "PatientIdentityRemoved" not in header or header.PatientIdentityRemoved != "YES"


def test_attributes_that_the_profile_lists_lose_their_value() -> None:
    source = scan()
    source.TimezoneOffsetFromUTC = "+0100"
    found = deidentified(source, ("PatientName",))
    for name in LISTED:
        assert name in source, name
        assert not found.get(name) or found[name].value != source[name].value, name
    assert "PatientName" in found
    assert "PatientID" not in found


def test_sequences_are_cleaned_and_uids_stay_the_same_among_themselves() -> None:
    source, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3.66612.31"
    item.PatientName, item.CodeValue = "Zzyzx^Anna", "113130"
    source.FrameOfReferenceUID, source.SourceImageSequence = "1.2.3.66612.31", [item, item]
    source.DeviceUID = ""
    found = deidentified(source)
    first, second = found.SourceImageSequence
    assert "PatientName" not in first
    assert (first.ReferencedSOPClassUID, first.CodeValue) == (MRImageStorage, "113130")
    assert first.ReferencedSOPInstanceUID == second.ReferencedSOPInstanceUID == found.FrameOfReferenceUID
    assert found.FrameOfReferenceUID != "1.2.3.66612.31"
    assert source.SourceImageSequence[0].PatientName == "Zzyzx^Anna"  # the source is left as it was
    assert not found.DeviceUID
