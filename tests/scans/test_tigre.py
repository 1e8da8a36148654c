"""MATLAB files with TIGRE's geometry, in MATLAB's order, give the operator and the measurement of their projections."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ddip_pl.errors import InputError
from ddip_pl.physics import ConeBeamCT, ParallelBeamCT
from ddip_pl.scans.counts import Detector
from ddip_pl.scans.files import read_scan

ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
VOLUME = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)) / 10  # 1/mm
ONES = np.ones((9, 21, 24))  # v, u, views


def save(path: Path, angles: np.ndarray = ANGLES, geo: dict[str, Any] | None = None, **variables: Any) -> Path:
    """A file of a MATLAB program, with `geo` in the order x, y, z and u, v."""
    given: dict[str, Any] = {
        "DSD": 60.0, "DSO": 40.0, "nDetector": [21.0, 9.0], "dDetector": [0.9, 0.8], "nVoxel": [12.0, 12.0, 4.0],
        "dVoxel": [0.5, 0.5, 0.6], "mode": "cone", "accuracy": 0.5,
    }  # fmt: skip
    fields = given | (geo or {})
    columns = {name: np.array(v)[:, None] if isinstance(v, list) else v for name, v in fields.items()}
    savemat(path, {"geo": columns, "angles": angles} | variables)
    return path


def test_cone_beam(tmp_path: Path) -> None:
    offset = {"offDetector": [0.3, -0.1]}
    operator = read_scan(save(tmp_path / "ones.mat", geo=offset, proj=ONES)).measurement.operator
    assert isinstance(operator, ConeBeamCT)
    # In the first view the source is on the x axis, and u and v run along y and z.
    expected = [40, 0, 0, -20, 0.3, -0.1, 0, 0.9, 0, 0, 0, 0.8]
    np.testing.assert_allclose(operator.vectors[0], expected, atol=1e-6)
    views = operator(VOLUME)[0] * operator.unit((0.5, 0.5))
    stored = np.moveaxis(views.numpy(), 0, 2)
    measurement, frame = read_scan(save(tmp_path / "scan.mat", geo=offset, anything=stored, tube=120.0))
    torch.testing.assert_close(measurement.y, operator(VOLUME))
    assert frame.name == "scan"
    assert frame.spacing == pytest.approx((0.5, 0.5, 0.6))


def test_offsets_and_angles_of_each_view(tmp_path: Path) -> None:
    """Three Euler angles and two offsets in the column of a view."""
    euler = np.stack([ANGLES, 0.1 * np.cos(ANGLES), 0 * ANGLES])
    offsets = np.stack([ANGLES, -ANGLES])
    operator = read_scan(
        save(tmp_path / "a.mat", euler, {"offDetector": offsets, "COR": np.arange(24.0)}, proj=ONES)
    ).measurement.operator
    assert isinstance(operator, ConeBeamCT)
    source = 40 * np.array([np.cos(0.1), 0, -np.sin(0.1)])  # turned about y by 0.1 in the first view
    np.testing.assert_allclose(operator.vectors[0, :3], source, atol=1e-6)
    quarter = operator.vectors[6]  # turned about z by 90 degrees, COR of 6 mm against x, offsets of pi / 2
    np.testing.assert_allclose(quarter[:3], [-6, 40, 0], atol=1e-6)
    np.testing.assert_allclose(quarter[3:6], [-6 - np.pi / 2, -20, -np.pi / 2], atol=1e-6)


def test_parallel_beam(tmp_path: Path) -> None:
    flat = {"mode": "parallel", "nDetector": [21.0, 4.0], "dDetector": [0.5, 0.6]}
    draw = np.random.default_rng(0).random((4, 21, 24))
    measurement, frame = read_scan(save(tmp_path / "scan.mat", geo=flat, proj=draw), slices=2, first=1)
    operator = measurement.operator
    assert isinstance(operator, ParallelBeamCT)
    assert operator.shape == (2, 12, 12)
    values = measurement.y[:, 0] * operator.unit((0.5, 0.5))
    np.testing.assert_allclose(values, draw[1:3].transpose(0, 2, 1), rtol=1e-5)
    assert frame.spacing == pytest.approx((0.5, 0.5, 0.6))


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.mat"
    for line, change in {
        "0 arrays of 9 x 21 bins and 24 views; expected one": {"proj": ONES[1:]},
        "2 arrays of 9 x 21 bins": {"proj": ONES, "again": ONES},
        "DSO of TIGRE's geometry is": {"proj": ONES, "geo": {"DSO": np.full(7, 40.0)}},
        "slices of 12 x 11 voxels": {"proj": ONES, "geo": {"nVoxel": [11.0, 12.0, 4.0]}},
    }.items():
        with pytest.raises(InputError, match=line):
            read_scan(save(path, **change))
    with pytest.raises(InputError, match=r"the slices were measured together; leave out data\.slices"):
        read_scan(save(path, proj=ONES), slices=2)
    with pytest.raises(InputError, match=r"data\.binning is 2, but only counts of an X-ray detector need it"):
        read_scan(path, detector=Detector(binning=2))
    savemat(path, {"image": ONES})
    with pytest.raises(InputError, match="no variables geo and angles, as for TIGRE; the file has image"):
        read_scan(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(InputError, match=r"a MATLAB file of version 7\.3; save it with '-v7'"):
        read_scan(path)
