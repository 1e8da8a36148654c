"""Our own files: whatever the operator, the measurement that is written is read back."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    Birdcage,
    ConeBeamCT,
    FanBeamCT,
    LinearOperator,
    NonCartesianMRI,
    ParallelBeamCT,
    Radial,
    RandomLines,
    RandomPoints,
    SingleCoilMRI,
)
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.operator import Description, Shape
from ddip_pl.scans.files import read_scan
from ddip_pl.scans.hdf5 import write_measurement
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.frame import Frame


def masks(height: int, width: int) -> Tensor:
    """One for each of four slices."""
    return torch.stack([RandomPoints(2, seed=i)((height, width)) for i in range(4)])


SQUARE, OBLONG = (4, 16, 16), (4, 15, 12)
OPERATORS = {
    "CT": lambda: ParallelBeamCT(SQUARE, [0.1, 0.5, 1.4, 2.9], detectors=21, spacing=1.2),
    "CT, fan beam": lambda: FanBeamCT(SQUARE, [0.1, 2.5, 4.4], source_distance=1.3, detectors=31, spacing=1.2),
    "one coil, real": lambda: SingleCoilMRI(OBLONG, masks(15, 12)),
    "one coil, complex": lambda: SingleCoilMRI(OBLONG, RandomLines(2), complex_image=True),
    "SENSE": lambda: SENSE(OBLONG, RandomLines(2), Birdcage(3)),
    "SENSE, masks and maps": lambda: SENSE(
        OBLONG, masks(15, 12), torch.cat([(1 + i) * Birdcage(3, 1.2 + i)((15, 12)) for i in range(4)])
    ),
    "radial, one coil": lambda: NonCartesianMRI(SQUARE, Radial(5)),
    "radial, maps": lambda: NonCartesianMRI(
        SQUARE, Radial(5), torch.cat([(1 + i) * Birdcage(3, 1.2 + i)(16) for i in range(4)]),
        density=torch.arange(1, 161),
    ),
}  # fmt: skip
AFFINE = np.array([[0.0, 0, 3, -20], [2, 0, 0, 10], [0, -2, 0, 5], [0, 0, 0, 1]])
FRAME = Frame("scan", AFFINE, window=(-1000.0, 500.0), margin=(1, 2, 0, 3), units="HU")


def measured(operator: LinearOperator) -> Measurement:
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    y = simulate(x, operator, 0.01, torch.Generator().manual_seed(1))
    return Measurement(y, operator, 0.01, x)


def written_and_read(folder: Path, operator: LinearOperator, **settings: int) -> tuple[Measurement, Scan]:
    written = measured(operator)
    write_measurement(folder / "a" / "file.h5", written, FRAME)
    return written, read_scan(folder / "a" / "file.h5", **settings)


def check_same(written: Measurement, found: Measurement) -> None:
    """The same operator, and the same measurement of an image that is 1500 times as bright."""
    assert type(found.operator) is type(written.operator)
    assert found.operator.scale == pytest.approx(written.operator.scale, rel=1e-4)
    assert found.operator.range == written.operator.range
    torch.testing.assert_close(
        found.operator(written.reference), written.operator(written.reference), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(found.y / 1500, written.y, rtol=1e-3, atol=1e-4)
    guess, expected = found.operator.pseudo_inverse(found.y) / 1500, written.operator.pseudo_inverse(written.y)
    assert (guess - expected).norm() < 0.01 * expected.norm()
    assert found.sigma_y == pytest.approx(15, rel=1e-3)
    assert found.reference is None


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())
def test_round_trip(tmp_path, make):
    written, (found, frame) = written_and_read(tmp_path, make())
    check_same(written, found)
    assert frame.window == (-1000, -999)
    assert (frame.name, frame.units, frame.margin) == ("scan", "HU", (1, 2, 0, 3))
    np.testing.assert_allclose(frame.affine, AFFINE)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.h5"]

    part, place = read_scan(tmp_path / "a" / "file.h5", slices=2, first=1)
    same, x = part.operator.scale / found.operator.scale, 1500 * written.reference[1:3]  # the norm of only two slices
    torch.testing.assert_close(same * part.y, found.y[1:3])
    torch.testing.assert_close(same * part.residual(x), found[1:3].residual(x), rtol=1e-3, atol=0.1)
    np.testing.assert_allclose(place.affine @ [1, 2, 0, 1], AFFINE @ [1, 2, 1, 1])


def test_slices_that_are_measured_together(tmp_path):
    operator = ConeBeamCT(SQUARE, 5, thickness=1.5, cache_dir=tmp_path / "cache")
    written, (found, frame) = written_and_read(tmp_path, operator)
    check_same(written, found)
    np.testing.assert_allclose(frame.affine, AFFINE)
    with pytest.raises(InputError, match=r"the slices were measured together; leave out data\.slices and data\.first"):
        read_scan(tmp_path / "a" / "file.h5", slices=2)


def test_a_measurement_is_replaced_and_nothing_else(tmp_path):
    written = measured(OPERATORS["CT"]())
    for _ in range(2):
        write_measurement(tmp_path / "file.h5", written, FRAME)
    (tmp_path / "notes.h5").write_text("dear to somebody")
    with pytest.raises(InputError, match=r"notes\.h5 exists and is not a ddip-pl measurement"):
        write_measurement(tmp_path / "notes.h5", written, FRAME)
    assert (tmp_path / "notes.h5").read_text() == "dear to somebody"
    with pytest.raises(InputError, match=r"cannot be written"):
        write_measurement(tmp_path / "notes.h5" / "file.h5", written, FRAME)


@pytest.mark.parametrize(
    ("name", "what"), [("CT", "sinograms"), ("CT, fan beam", "sinograms"), ("radial, one coil", "trajectories")]
)
def test_pixels_that_are_not_square(tmp_path, name, what):
    frame = replace(FRAME, affine=AFFINE * [1.0, 1.5, 1, 1])
    with pytest.raises(InputError, match=f"pixels of 3 x 2 mm; {what} need square ones"):
        write_measurement(tmp_path / "file.h5", measured(OPERATORS[name]()), frame)
    assert not list(tmp_path.iterdir())


# --- a custom operator ----------------------------------------------------------------------------------------


class Shading(LinearOperator):
    """Each pixel times a gain; the name of the scanner and a curve come along."""

    kind, axes = "shading", ("slices", "rows", "columns")
    gains: Tensor

    def __init__(self, shape: Shape, gains: Tensor, maker: str = "", curve: np.ndarray | None = None):
        super().__init__(shape)
        self.register_buffer("gains", gains)
        self.maker, self.curve = maker, curve

    def forward(self, x: Tensor) -> Tensor:
        return self.gains * x

    def describe(self, pixel: tuple[float, float]) -> Description:
        return {"gains": self.gains.numpy(), "maker": self.maker, "curve": self.curve}

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> LinearOperator:
        if "gains" not in description:
            raise InputError("no gains; write them")
        gains = torch.from_numpy(description["gains"])
        return cls(data, gains, description["maker"], description["curve"])


@pytest.mark.parametrize("norm", [1.0, 7.0])
def test_an_operator_of_ones_own(tmp_path, norm):
    """The class is all that is needed, whatever its norm; here with gains for each slice."""
    gains = norm * torch.linspace(0.1, 1, 4 * 15 * 12).view(4, 1, 15, 12)
    operator = Shading(OBLONG, gains, "ours", np.arange(3.0))
    written, (found, frame) = written_and_read(tmp_path, operator.normalised())
    check_same(written, found)
    assert found.operator.scale == pytest.approx(norm, rel=0.01)
    inner = getattr(found.operator, "operator", found.operator)
    torch.testing.assert_close(inner.gains, gains)
    assert inner.maker == "ours"
    np.testing.assert_array_equal(inner.curve, np.arange(3))
    np.testing.assert_allclose(frame.affine, AFFINE)
    part = read_scan(tmp_path / "a" / "file.h5", slices=2, first=1).measurement.operator
    torch.testing.assert_close(getattr(part, "operator", part).gains, gains[1:3])


def test_what_an_operator_of_ones_own_refuses(tmp_path):
    written_and_read(tmp_path, Shading(OBLONG, torch.ones(15, 12), curve=np.arange(4.0)))
    path = tmp_path / "a" / "file.h5"
    with h5py.File(path, "a") as file:
        del file["gains"]
    with pytest.raises(InputError, match=f"measurement {path}: no gains; write them"):
        read_scan(path)


class Bare(LinearOperator):
    """An operator without a file layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_operator_without_a_layout(tmp_path):
    with pytest.raises(InputError, match="no file layout for measurements by Bare"):
        write_measurement(tmp_path / "file.h5", measured(Bare(OBLONG)), FRAME)
    assert not list(tmp_path.iterdir())


# --- files of earlier versions --------------------------------------------------------------------------------

COMMON = {"version": 1, "name": "scan", "units": "HU", "rescale_intercept": -1000.0, "margin": (1, 2, 0, 3)}
EARLIER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CT": (
        {"angles": np.array([0.1, 0.5, 1.4, 2.9])},
        {"operator": "parallel_beam", "image_size": 16, "pixel_size": 2.0, "detector_spacing": 2.4},
    ),
    "CT, fan beam": (
        {"angles": np.array([0.1, 2.5, 4.4])},
        {
            "operator": "fan_beam", "image_size": 16, "pixel_size": 2.0, "detector_spacing": 2.4,
            "source_distance": 1.3 * 32, "detector_distance": 0.9 * 32,
        },
    ),
    "one coil, real": (
        {"mask": masks(15, 12).numpy() != 0},
        {"operator": "cartesian", "channels": 1, "field_of_view": (30.0, 24.0)},
    ),
    "SENSE": (
        {"mask": RandomLines(2)((15, 12)).numpy()[None] != 0, "coil_maps": Birdcage(3)((15, 12)).numpy()},
        {"operator": "cartesian", "channels": 2, "field_of_view": (30.0, 24.0)},
    ),
    "radial, one coil": (
        {
            "trajectory": Radial(5)(16).double().numpy() / (4 * np.pi), "density_compensation": None,
            "coil_maps": np.ones((1, 1, 16, 16), np.complex64),
        },
        {"operator": "non_cartesian", "image_size": 16, "pixel_size": 2.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EARLIER)
def test_files_of_the_first_version(tmp_path, name):
    """Written by hand in the layout of version 1."""
    written, (datasets, attributes) = measured(OPERATORS[name]()), EARLIER[name]
    ct = attributes["operator"].endswith("beam")
    unit = written.operator.scale * 1500 * (2.0 if ct else 1.0)
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.attrs.update(COMMON | attributes | {"sigma_y": 0.01 * unit})
        for key, values in datasets.items():
            file[key] = written.operator.density.numpy() if values is None else values
        file["affine"] = AFFINE
        file["data"] = (written.y[:, 0] if ct else written.y).numpy() * np.float32(unit)
    found, frame = read_scan(tmp_path / "file.h5")
    check_same(written, found)
    assert frame.window == (-1000, -999)
    assert (frame.name, frame.units, frame.margin) == ("scan", "HU", (1, 2, 0, 3))
    np.testing.assert_allclose(frame.affine, AFFINE)

    write_measurement(tmp_path / "again.h5", written, FRAME)
    with h5py.File(tmp_path / "file.h5") as by_hand, h5py.File(tmp_path / "again.h5") as now:
        assert set(by_hand) == set(now)
        assert set(by_hand.attrs) == set(now.attrs)
        for key in by_hand:
            np.testing.assert_allclose(now[key], by_hand[key], rtol=1e-6, atol=1e-6 * np.abs(by_hand[key]).max())
            assert now[key].dtype == by_hand[key].dtype
        for key, value in by_hand.attrs.items():
            if isinstance(value, str):
                assert now.attrs[key] == value
            else:
                np.testing.assert_allclose(now.attrs[key], value, rtol=1e-6)


def test_an_operator_of_ones_own_on_the_command_line(tmp_path, phantom_volume):
    """Its module is found on the path, and naming the class is all that either command needs."""
    (tmp_path / "halving.py").write_text(
        "from ddip_pl import LinearOperator\n"
        "class Halving(LinearOperator):\n"
        "    kind, axes = 'halving', ('slices', 'rows', 'columns')\n"
        "    def forward(self, x): return 0.5 * x\n"
        "    def describe(self, pixel): return {'pixel_size': pixel[0]}\n"
        "    @classmethod\n"
        "    def from_description(cls, description, data): return cls(data)\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ddip_pl.cli", *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    own = ("--plugins", "halving", "--data.operator", "halving.Halving")
    given = ("--data.path", str(phantom_volume), "--data.sigma_y", "0.01", "--data.size", "32")
    made = run("simulate", *own, *given, "--output", "own.h5")
    assert made.returncode == 0, made.stderr
    predict = ("predict", "--config", "configs/task/measured.yaml", "--config", "configs/method/fbp.yaml",
               "--data.path", "own.h5", "--output", "out")  # fmt: skip
    without = run(*predict)
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "--plugins MODULE --data.operator MODULE.CLASS" in without.stderr
    found = run(*predict, *own)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "phantom" / "reconstruction.nii.gz").is_file()
