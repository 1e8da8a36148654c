"""Siemens raw data (twix, `meas_*.dat`), read with the package `twixtools`.

The readouts are described as the converter `siemens_to_ismrmrd` does, so both ways give the same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddip_pl.errors import InputError, reason
from ddip_pl.scans.counters import ANY, Counters
from ddip_pl.scans.header import Encoding
from ddip_pl.scans.readouts import Readouts, read_image
from ddip_pl.scans.recording import Recording

Block = Any  # twixtools.mdb.Mdb, one readout of all coils; the package is untyped

SUFFIX = ".dat"
NOISE = "NOISEADJSCAN"
SMALLEST = 128  # bytes of a readout
FLAGS = {
    NOISE: "NOISE_MEASUREMENT", "PATREFANDIMASCAN": "PARALLEL_CALIBRATION_AND_IMAGING", "REFLECT": "REVERSE",
    "PHASCOR": "PHASECORR_DATA", "RTFEEDBACK": "RTFEEDBACK_DATA", "HPFEEDBACK": "HPFEEDBACK_DATA",
    "REFPHASESTABSCAN": "PHASE_STABILIZATION_REFERENCE", "PHASESTABSCAN": "PHASE_STABILIZATION",
    "RETRO_DUMMYSCAN": "DUMMYSCAN_DATA",
}  # fmt: skip
COUNTERS = {
    "kspace_encode_step_1": "Lin", "kspace_encode_step_2": "Par", "average": "Ave", "slice": "Sli", "contrast": "Eco",
    "phase": "Phs", "repetition": "Rep", "set": "Set", "segment": "Seg",
}  # fmt: skip
TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral"}
EMBEDDED = 2  # reference lines are measured within the image's k-space
NOISE_BANDWIDTH = 0.793  # of Siemens's receivers, as a share of the sampling rate
COIL_ADJUSTMENT = 5.0  # microseconds between the samples of the noise scan of AdjCoilSens


def twix_volumes(path: Path, wanted: Counters) -> list[Counters]:
    """The volumes in a file that have the wanted counters.

    Raises:
        InputError: there are none; or see `read_twix`.
    """
    return _readouts(path).volumes(wanted)


def read_twix(path: Path, slices: int | None, first: int | None, wanted: Counters = ANY) -> Recording:
    """Read the image of the last measurement in a file, see `read_image`.

    Raises:
        InputError: see `read_image`; or the package is missing, or the file is damaged.
    """
    return read_image(path.stem, _readouts(path), slices, first, wanted)


def _readouts(path: Path) -> Readouts:
    try:
        import ismrmrd  # noqa: F401
        import twixtools  # noqa: F401
    except ImportError as error:
        raise InputError("twix files need packages that are missing; pip install 'ddip-pl[twix]'") from error
    try:
        measurements = _measurements(path)
        image, header = measurements[-1]
        encoding = _encoding(header, next((block.mdh for block in image if block.is_image_scan()), None))
        lines = Lines([(block, _dwell(block, header)) for block in image])
        if not any(_has(block, NOISE) for block in image):  # a scan before the image, such as AdjCoilSens, may have it
            noise = [[(b, _dwell(b, head)) for b in each if _has(b, NOISE)] for each, head in measurements[:-1]]
            lines.blocks[:0] = next((each for each in reversed(noise) if each), [])
        heads = lines.heads()
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"damaged, or not Siemens raw data ({reason(error)})") from error
    if encoding.trajectory != "cartesian":
        raise InputError(
            f"a {encoding.trajectory} scan, whose sample positions are not in the file; convert it with "
            "siemens_to_ismrmrd and add them (traj)"
        )
    return Readouts(heads, lines, encoding)


def _measurements(path: Path) -> list[tuple[list[Block], Mapping[str, Any]]]:
    """The readouts and the header of each measurement in a file.

    `twixtools.read_twix` does the same, but never ends if a damaged file gives wrong lengths.

    Raises:
        ValueError: the lengths do not fit the file.
    """
    from twixtools.hdr_def import MultiRaidFileHeader, SingleMeasInit
    from twixtools.helpers import idea_version_check
    from twixtools.mdb import Mdb
    from twixtools.twixprot import parse_twix_hdr

    found, size = [], path.stat().st_size
    with path.open("rb") as file:
        several, count = idea_version_check(file)  # since software version VD
        bounds = [(0, size)]
        if several:
            [entries] = np.fromfile(file, MultiRaidFileHeader, 1)["entry"]
            bounds = [(int(entry["off_"]), int(entry["off_"] + entry["len_"])) for entry in entries[:count]]
        for start, stop in bounds:
            if not start < stop <= size:
                raise ValueError(f"a measurement from byte {start} to {stop} in a file of {size} bytes")
            file.seek(start)
            header = parse_twix_hdr(file)
            file.seek(start)
            place, blocks = start + int(np.fromfile(file, SingleMeasInit, 1)["hdr_len"][0]), []
            while place + SMALLEST < stop:
                file.seek(place)
                block = Mdb(file, several)
                if _has(block, "ACQEND"):
                    break
                if not SMALLEST <= block.dma_len <= stop - place:
                    raise ValueError(f"a readout of {block.dma_len} bytes at byte {place} of {size}")
                if not _has(block, "SYNCDATA"):
                    blocks.append(block)
                place += int(block.dma_len)
            found.append((blocks, header))
    return found


class Lines:
    """The readouts of a measurement as `ismrmrd` describes them; their values are read when they are asked for.

    Args:
        blocks: the readouts, with the time between their samples in microseconds.
    """

    def __init__(self, blocks: list[tuple[Block, float]]):
        self.blocks = blocks

    def heads(self) -> np.ndarray:
        """Their headers, `(readouts,)`."""
        from ismrmrd.hdf5 import acquisition_header_dtype

        return np.frombuffer(b"".join(bytes(_head(*block)) for block in self.blocks), acquisition_header_dtype)

    def __getitem__(self, chosen: slice) -> list[Any]:
        import ismrmrd

        found = [ismrmrd.Acquisition(_head(*block)) for block in self.blocks[chosen]]
        for line, (block, _) in zip(found, self.blocks[chosen], strict=True):
            line.data[:] = block.data
        return found


def _has(block: Block, *flags: str) -> bool:
    return any(block.is_flag_set(flag) for flag in flags)


def _dwell(block: Block, header: Mapping[str, Any]) -> float:
    """Time between two samples of a readout, in microseconds.

    That of a noise scan is not in the file. `siemens_to_ismrmrd` knows it.
    """
    if not _has(block, NOISE):
        return float(header["MeasYaps"]["sRXSPEC"]["alDwellTime"][0]) / 1000
    if "AdjCoilSens" in str(header["MeasYaps"].get("tProtocolName", "")):
        return COIL_ADJUSTMENT
    samples = block.mdh.SamplesInScan
    return int(76800 / samples) / 10 if block.version_is_ve else 1e6 / 130 / samples


def _head(block: Block, dwell: float) -> Any:
    """The header of a readout, `ismrmrd.AcquisitionHeader`."""
    import ismrmrd
    from scipy.spatial.transform import Rotation

    mdh, head = block.mdh, ismrmrd.AcquisitionHeader()
    head.version, head.sample_time_us = 1, dwell
    head.active_channels = head.available_channels = mdh.UsedChannels
    head.number_of_samples, head.center_sample = mdh.SamplesInScan, mdh.CenterCol
    head.discard_pre, head.discard_post = mdh.CutOff.Pre, mdh.CutOff.Post
    position = mdh.SliceData.SlicePos
    head.position[:] = position.Sag, position.Cor, position.Tra
    w, x, y, z = mdh.SliceData.Quaternion  # 0 in readouts that have no place, such as noise
    turn = Rotation.from_quat([x, y, z, w]) if any((w, x, y, z)) else Rotation.identity()
    phase, read, normal = turn.as_matrix().T.tolist()
    head.phase_dir[:], head.read_dir[:], head.slice_dir[:] = phase, read, normal
    for name, counter in COUNTERS.items():
        setattr(head.idx, name, getattr(mdh.Counter, counter))
    flags = [name for flag, name in FLAGS.items() if _has(block, flag)]
    if _has(block, "PATREFSCAN") and not _has(block, "PATREFANDIMASCAN"):
        flags.append("PARALLEL_CALIBRATION")
    for flag in flags:
        head.setFlag(getattr(ismrmrd, f"ACQ_IS_{flag}"))
    return head


def _encoding(header: Mapping[str, Any], first: Any) -> Encoding:
    """How k-space was encoded, from the header of a measurement and that of its first image readout, if any."""
    sizes, protocol = header["Meas"], header["MeasYaps"]
    space, plane = protocol["sKSpace"], protocol["sSliceArray"]["asSlice"][0]
    x, y, z = (int(sizes[name]) for name in ("iNoOfFourierColumns", "iPEFTLength", "i3DFTLength"))
    read, phase, across = (float(plane[name]) for name in ("dReadoutFOV", "dPhaseFOV", "dThickness"))
    more_phase, more_across = (float(space.get(f"d{name}OversamplingForDialog", 0)) for name in ("Phase", "Slice"))
    wide = read * float(sizes["flReadoutOSFactor"])
    return Encoding(
        matrix=(x, y, z), encoded=(wide, phase * (1 + more_phase), across * (1 + more_across * (z > 1))),
        wanted=(read, phase, across), centre=(first.CenterLin, first.CenterPar) if first else (0, 0),
        trajectory=TRAJECTORIES.get(space["ucTrajectory"], "other"), noise_bandwidth=NOISE_BANDWIDTH,
        embedded=protocol.get("sPat", {}).get("ucRefScanMode") == EMBEDDED,
    )  # fmt: skip
