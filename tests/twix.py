"""Small files of Siemens raw data, written by the package `twixtools`."""

from pathlib import Path
from typing import Any

import numpy as np
import twixtools
from scipy.spatial.transform import Rotation

COILS, X, Y, Z = 2, 32, 20, 6  # samples of a readout (oversampled twice), lines, partitions
NORMAL = np.array([-0.8, 0.0, 0.6])
PHASE, READ = np.array([0.6, 0.0, 0.8]), np.array([0.0, 1.0, 0.0])
TURN = Rotation.from_matrix(np.stack([PHASE, READ, NORMAL], axis=1))
POSITION = (7.0, -3.0, 11.0)
PROTOCOL = """### ASCCONV BEGIN ###
sRXSPEC.alDwellTime[0]\t = \t5000
sKSpace.ucTrajectory\t = \t{trajectory}
sSliceArray.asSlice[0].dReadoutFOV\t = \t200.0
sSliceArray.asSlice[0].dPhaseFOV\t = \t100.0
sSliceArray.asSlice[0].dThickness\t = \t{thickness}
sPat.ucRefScanMode\t = \t{mode}
### ASCCONV END ###
"""


def header(z: int = 1, **protocol: Any) -> np.ndarray:
    """A measurement's header: its length, the number of buffers, and each one's name, length and text."""
    sizes = {"iNoOfFourierColumns": X, "iPEFTLength": Y, "i3DFTLength": z}
    meas = "".join(f'<ParamLong."{name}">  {{ {value} }}\n' for name, value in sizes.items())
    meas += '<ParamDouble."flReadoutOSFactor">  { <Precision> 6 2.0 }\n'
    text = PROTOCOL.format(**({"trajectory": 1, "thickness": 5.0 * z, "mode": 1} | protocol))
    parts = b"".join(
        name + b"\0" + np.uint32(len(buffer)).tobytes() + buffer
        for name, buffer in ((b"Meas", meas.encode()), (b"MeasYaps", text.encode()))
    )
    return np.frombuffer(np.array([8 + len(parts), 2], np.uint32).tobytes() + parts, "<S1")


def block(samples: np.ndarray, flags: tuple[str, ...] = (), centre: int = X // 2, **counters: int) -> Any:
    """A readout `(coils, samples)`."""
    made = twixtools.mdb.Mdb_local(samples)
    made.mdh.CenterCol, made.mdh.CenterLin, made.mdh.CenterPar = centre, Y // 2, Z // 2 * ("Par" in counters)
    for name, value in counters.items():
        setattr(made.mdh.Counter, name, value)
    position = made.mdh.SliceData.SlicePos
    position.Sag, position.Cor, position.Tra = np.array(POSITION) + counters.get("Sli", 0) * 6 * NORMAL
    if "NOISEADJSCAN" not in flags:  # noise has no place
        made.mdh.SliceData.Quaternion[:] = np.roll(TURN.as_quat(), 1)  # scalar first
    for flag in flags:
        made.add_flag(flag)
    return made


def write(path: Path, *measurements: tuple[list[Any], np.ndarray]) -> Path:
    twixtools.write_twix([{"mdb": blocks, "hdr_str": text} for blocks, text in measurements], str(path))
    return path
