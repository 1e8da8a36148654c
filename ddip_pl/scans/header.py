"""The ISMRMRD header, which describes k-space. fastMRI files have one too."""

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from ddip_pl.errors import InputError, reason

NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


@dataclass(frozen=True)
class Encoding:
    """How k-space was encoded, along x (readout), y (lines) and z (partitions).

    Attributes:
        matrix: number of samples.
        encoded: their field of view, in mm.
        wanted: field of view to reconstruct, in mm.
        trajectory: "cartesian" or any other.
        centre: line and partition of the zero frequency, by default the middle ones.
        embedded: whether the calibration lines are part of the image's k-space, as those of the modes "embedded" and
            "interleaved" are.
        noise_bandwidth: equivalent noise bandwidth of the noise scan, as a share of its sampling rate.
    """

    matrix: tuple[int, int, int]
    encoded: tuple[float, float, float]
    wanted: tuple[float, float, float]
    trajectory: str
    centre: tuple[int, int]
    embedded: bool
    noise_bandwidth: float = 1.0

    @property
    def spacing(self) -> float:
        """Distance between slices or partitions, in mm."""
        return self.wanted[2] if self.matrix[2] == 1 else self.encoded[2] / self.matrix[2]

    def beside(self, axis: int, length: int) -> tuple[int, int]:
        """How many of `length` positions lie before and after the wanted field of view."""
        kept = min(length, max(1, round(length * self.wanted[axis] / self.encoded[axis])))
        before = length // 2 - kept // 2
        return before, length - kept - before


def parse_header(xml: str | bytes) -> Encoding:
    """Read an ISMRMRD header.

    Raises:
        InputError: it is not a valid header, or has several encodings.
    """
    try:
        root = ElementTree.fromstring(xml)
        found = root.findall(f"{NAMESPACE}encoding")
        bandwidth = root.findtext(f"{NAMESPACE}acquisitionSystemInformation/{NAMESPACE}relativeReceiverNoiseBandwidth")
        if len(found) != 1:
            raise ValueError(f"{len(found)} encodings")
        [encoding] = found

        def value(*names: str) -> str | None:
            return encoding.findtext("/".join(NAMESPACE + name for name in names))

        def lengths(space: str, name: str) -> tuple[float, float, float]:
            x, y, z = (float(value(space, name, axis) or "nan") for axis in "xyz")
            return x, y, z

        def centre(step: int, length: float) -> int:
            return int(value("encodingLimits", f"kspace_encoding_step_{step}", "center") or length // 2)

        x, y, z = lengths("encodedSpace", "matrixSize")
        header = Encoding(
            matrix=(int(x), int(y), int(z)),
            encoded=lengths("encodedSpace", "fieldOfView_mm"),
            wanted=lengths("reconSpace", "fieldOfView_mm"),
            trajectory=value("trajectory") or "cartesian",
            centre=(centre(1, y), centre(2, z)),
            embedded=value("parallelImaging", "calibrationMode") in ("embedded", "interleaved"),
            noise_bandwidth=float(bandwidth or 1),
        )
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"not an ISMRMRD header with a single encodedSpace and reconSpace ({reason(error)})"
        ) from error
    numbers = np.array([*header.matrix, *header.encoded, *header.wanted, header.noise_bandwidth])
    if not ((numbers > 0) & (numbers < np.inf)).all():
        raise InputError(
            f"the header has matrix sizes, fields of view and noise bandwidth {numbers}; expected positive ones"
        )
    return header
