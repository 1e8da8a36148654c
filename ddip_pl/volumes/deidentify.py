"""Takes what identifies a patient out of a DICOM header: the Basic Profile of DICOM PS3.15, annex E."""

from collections.abc import Collection

from pydicom import Dataset
from pydicom.uid import generate_uid

PERSONAL = ("PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight", "PregnancyStatus", "SmokingStatus")
# Names, dates, times, ages, texts, addresses on the network, bytes and sequences may be about a person, a place or an
# order, except those that name a device, a unit or a code, and what ddip-pl writes itself.
DOUBTFUL = (
    "PN", "DA", "DT", "TM", "AS", "LO", "LT", "SH", "ST", "UC", "UR", "UT", "AE", "OB", "OD", "OF", "OL", "OV", "OW",
    "UN", "SQ",
)  # fmt: skip
HARMLESS = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "RescaleType", "CodeValue", "CodingSchemeDesignator",
    "CodeMeaning", "SeriesDescription", "DerivationDescription", "DerivationCodeSequence", "SourceImageSequence",
    "PurposeOfReferenceCodeSequence", "ContributingEquipmentSequence",
)  # fmt: skip
STANDARD = "1.2.840.10008."  # begins UIDs of classes and the like, which DICOM defines


def deidentified(header: Dataset, required: Collection[str] = ()) -> Dataset:
    """A copy of the header of a derived image, without what identifies the patient.

    Names, dates, times, ages, sex, size, weight, private attributes and all texts and sequences that could be about a
    person, place or order are removed. UIDs are replaced. The technique of the acquisition stays.

    Args:
        header: with series and derivation described by ddip-pl, not by the source.
        required: attributes that lose only their value, because the image must have them.
    """
    kept = cleaned(header, required, {})
    kept.PatientIdentityRemoved, kept.LongitudinalTemporalInformationModified = "YES", "REMOVED"
    kept.DeidentificationMethod = "PS3.15 Basic Application Confidentiality Profile"
    profile = Dataset()
    profile.CodeValue, profile.CodingSchemeDesignator = "113100", "DCM"
    profile.CodeMeaning = "Basic Application Confidentiality Profile"
    kept.DeidentificationMethodCodeSequence = [profile]
    return kept


def cleaned(header: Dataset, required: Collection[str], uids: dict[str, str]) -> Dataset:
    """The same without what identifies the patient, also in sequences; `uids` are those replaced so far."""
    kept = Dataset()
    for element in header:
        name = element.keyword
        if not name:  # a private attribute
            continue
        if name in PERSONAL or (element.VR in DOUBTFUL and name not in HARMLESS):
            if name in required:
                setattr(kept, name, "")
        elif element.VR == "SQ":
            setattr(kept, name, [cleaned(item, required, uids) for item in element.value])
        elif element.VR == "UI" and element.value:
            given = [element.value] if isinstance(element.value, str) else element.value
            setattr(kept, name, [replaced(uid, uids) for uid in given])
        else:
            kept.add(element)
    return kept


def replaced(uid: str, uids: dict[str, str]) -> str:
    """A new UID, the same for the same one, unless it is one that DICOM defines."""
    return uid if uid.startswith(STANDARD) else uids.setdefault(uid, generate_uid())
