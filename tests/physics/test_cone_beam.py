"""Cone-beam CT: against line integrals of ellipsoids, and against the fan beam in the plane of the orbit."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import ConeBeamCT, FanBeamCT, LinearOperator

GEOMETRIES = st.fixed_dictionaries(
    {
        "image_size": st.integers(2, 16),
        "angles": st.integers(1, 8) | st.lists(st.floats(-7, 7), min_size=1, max_size=4),
        "slices": st.integers(1, 6),
        "thickness": st.sampled_from([0.5, 1.0, 2.2]),
        "source_distance": st.floats(0.75, 3),
        "detector_distance": st.floats(0.1, 2),
        "rows": st.none() | st.integers(1, 12),
        "detectors": st.none() | st.integers(3, 30),
        "spacing": st.sampled_from([None, 0.7, 2.0]),
    }
)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(geometry=GEOMETRIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adjoint(dtype, tolerance, geometry):
    operator = ConeBeamCT(**geometry).to(dtype)
    operator.scale = 1.0  # cheaper
    x = random(operator.coupled, 1, operator.image_size, operator.image_size, dtype=dtype)
    ax = operator(x)
    assert ax.shape == (1, len(operator.angles), operator.rows, operator.detectors)
    y = random(*ax.shape, dtype=dtype, seed=1)
    difference = torch.sum(ax * y) - torch.sum(x * operator.adjoint(y))
    assert abs(difference) <= tolerance * ax.norm() * y.norm()


def test_line_integrals_of_ellipsoids():
    """Smooth ones, `(1 - r^2)^2`, so that voxels can stand for them; the integral is in closed form."""
    size, slices, thickness, distances = 64, 40, 1.6, (1.1, 0.7)
    angles = [0.0, 0.6, math.pi / 2, 2.5, 3.9, 5.5]
    operator = ConeBeamCT(size, angles, slices, thickness, *distances)
    operator.scale = 1.0  # cheaper
    ellipsoids = [  # value; centre and semi-axes along (row, column, slice), in pixels
        (1.0, (5.0, -8.0, 3.0), (20.0, 14.0, 15.0)),
        (0.6, (-2.0, 9.0, -16.0), (14.0, 15.0, 14.0)),
        (-0.8, (-13.0, -6.0, 17.0), (13.0, 12.0, 13.0)),
    ]
    rows, steps = (np.arange(n) - (n - 1) / 2 for n in (size, slices))
    volume = np.zeros((slices, size, size))
    expected = np.zeros((len(angles), operator.rows, operator.detectors))
    for value, centre, axes in ellipsoids:
        p, q = ((rows - c) / a for c, a in zip(centre[:2], axes[:2], strict=True))
        z = (steps * thickness - centre[2]) / axes[2]
        volume += value * np.maximum(1 - p[:, None] ** 2 - q**2 - z[:, None, None] ** 2, 0) ** 2
        for i, angle in enumerate(angles):
            source = distances[0] * size * np.array([math.sin(angle), -math.cos(angle), 0.0])
            u = (np.arange(operator.detectors) - (operator.detectors - 1) / 2) * operator.spacing
            v = (np.arange(operator.rows) - (operator.rows - 1) / 2) * operator.spacing
            bins = -distances[1] / distances[0] * source + u[:, None] * [math.cos(angle), math.sin(angle), 0.0]
            bins = bins + v[:, None, None] * [0.0, 0.0, 1.0]
            ray = (bins - source) / np.linalg.norm(bins - source, axis=-1, keepdims=True) / axes
            start = (source - centre) / axes
            a, b, c = (ray**2).sum(-1), (ray * start).sum(-1), (start**2).sum() - 1
            half = np.sqrt(np.maximum(b**2 - a * c, 0)) / a  # of the chord
            expected[i] += value * 16 / 15 * a**2 * half**5
    x = torch.from_numpy(volume)[:, None].float()
    assert relative(operator(x)[0], torch.from_numpy(expected).float()) < 0.01


def test_agrees_with_the_fan_beam_in_the_plane_of_the_orbit():
    size = 64
    row, column = torch.arange(size)[:, None] - 31.5, torch.arange(size) - 31.5
    blobs = (1.0, 10, 5, 6), (0.5, -12, 15, 4), (0.7, 3, -18, 3)  # value, centre, width
    image = sum(a * torch.exp(-((row - p) ** 2 + (column - q) ** 2) / (2 * s**2)) for a, p, q, s in blobs)
    fan = FanBeamCT(size, 40, source_distance=1.4, detector_distance=0.7)
    cone = ConeBeamCT(size, 40, 3, source_distance=1.4, detector_distance=0.7, rows=5)
    assert (cone.detectors, cone.spacing) == (fan.detectors, fan.spacing)
    x = torch.zeros(3, 1, size, size)
    x[1] = image
    assert relative(cone.scale * cone(x)[0, :, 2], fan.scale * fan(x[1:2])[0, 0]) < 0.01


def test_rows_follow_the_slices():
    operator = ConeBeamCT(16, 5, slices=6)
    x = random(6, 1, 16, 16)
    torch.testing.assert_close(operator(x.flip(0)), operator(x).flip(2))
    top = torch.zeros_like(x)
    top[0] = 1
    seen = operator(top)[0].sum((0, 2))
    assert seen[: operator.rows // 2].sum() > 20 * seen[-(operator.rows // 2) :].sum()


def test_the_detector_covers_the_volume_and_no_more():
    x = torch.ones(8, 1, 32, 32)
    operator = ConeBeamCT(32, 24, 8)
    seen = operator.scale * operator(x)[0]
    assert (seen.amax((0, 2)) > 0).all()
    assert seen[:, [0, -1]].max() < 0.2 * seen.max()
    larger = ConeBeamCT(32, 24, 8, rows=operator.rows + 10, detectors=operator.detectors + 10)
    assert (larger.scale * larger(x)).sum().item() == pytest.approx(seen.sum().item(), rel=5e-3)


def test_pseudo_inverse():
    """With more rays than voxels, all but the sharpest detail comes back."""
    operator = ConeBeamCT(24, 60, 6)
    x = torch.zeros(6, 1, 24, 24)
    x[1:4, :, 5:14, 8:20] = 1
    few, many = (operator.for_volume(6) for _ in range(2))
    many.iterations = 100
    assert relative(few.pseudo_inverse(operator(x)), x) < 0.08
    assert relative(many.pseudo_inverse(operator(x)), x) < 0.02


def test_for_volume_changes_nothing_but_the_number_of_slices(tmp_path):
    settings = {
        "image_size": 16, "angles": [0.3, 2.0], "thickness": 1.5, "source_distance": 1.3, "detector_distance": 0.6,
        "detectors": 20, "spacing": 1.3, "iterations": 7, "cache_dir": tmp_path,
    }  # fmt: skip
    found, expected = ConeBeamCT(**settings).for_volume(5), ConeBeamCT(**settings, slices=5)
    assert repr(found) == repr(expected)
    assert found.iterations == 7
    x = random(5, 1, 16, 16)
    assert torch.equal(found(x), expected(x))
    assert len(list(tmp_path.iterdir())) == 1
    assert ConeBeamCT(16, 3, rows=4).for_volume(5).rows == 4


@pytest.mark.parametrize(
    "other",
    [
        {"image_size": 13}, {"angles": 6}, {"slices": 4}, {"thickness": 1.1}, {"source_distance": 1.3},
        {"detector_distance": 0.8}, {"rows": 9}, {"detectors": 20}, {"spacing": 1.5},
    ],
)  # fmt: skip
def test_norms_of_other_geometries_are_not_mixed_up(tmp_path, other):
    geometry = {"image_size": 12, "angles": 5, "slices": 3, "rows": 7, "detectors": 21, "spacing": 1.6}
    geometry |= {"cache_dir": tmp_path}
    first = ConeBeamCT(**geometry).scale
    (path,) = tmp_path.iterdir()
    changed = path.stat().st_mtime_ns
    assert ConeBeamCT(**geometry).scale == first
    assert path.stat().st_mtime_ns == changed
    assert ConeBeamCT(**geometry | other).scale != first


def test_is_a_linear_operator_without_state():
    operator = ConeBeamCT(8, 3, 4)
    assert isinstance(operator, LinearOperator)
    assert operator.coupled == 4
    assert operator.state_dict() == {}
    assert not list(operator.parameters())
    assert "image_size=8, slices=4, angles=3" in repr(operator)


def test_wrong_shapes_are_refused():
    operator = ConeBeamCT(8, 3, 4, rows=5, detectors=9)
    for bad in torch.zeros(3, 1, 8, 8), torch.zeros(4, 8, 8), torch.zeros(4, 1, 8, 7):
        with pytest.raises(ValueError, match=r"expected a tensor of shape \(4, 1, 8, 8\), got \("):
            operator(bad)
    for bad in torch.zeros(4, 3, 5, 9), torch.zeros(1, 3, 9, 5), torch.zeros(3, 5, 9):
        for apply in operator.adjoint, operator.pseudo_inverse:
            with pytest.raises(ValueError, match=r"expected a tensor of shape \(1, 3, 5, 9\), got \("):
                apply(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"angles": []}, r"angles is \[\]"),
        ({"slices": 0}, "slices is 0"),
        ({"thickness": -1.0}, "thickness is -1.0"),
        ({"source_distance": 0.7}, r"source_distance is 0\.7; expected more than 0\.71"),
        ({"detector_distance": 0.0}, "detector_distance is 0.0"),
        ({"rows": 1.5}, "rows is 1.5"),
        ({"detectors": 0}, "detectors is 0"),
        ({"spacing": math.inf}, "spacing is inf"),
        ({"iterations": 0}, "iterations is 0"),
        ({"rows": 2, "spacing": 1000.0}, "no ray meets the volume"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        ConeBeamCT(**{"image_size": 16, "angles": 5} | bad).scale  # noqa: B018
    assert "\n" not in str(caught.value)


def test_task(phantom_volume):
    """The operator is made for the volume's number of slices."""
    data = yaml.safe_load(CONFIGS.joinpath("task", "cone_beam_ct.yaml").read_text())["data"]
    parser = ArgumentParser()
    parser.add_class_arguments(VolumeDataModule, "data")
    given_data = data | {"path": str(phantom_volume), "size": 16, "slices": 4}
    module = parser.instantiate_classes(parser.parse_string(json.dumps({"data": given_data}))).data
    measurement = module.simulate(module.operator(16))
    assert len(measurement) == measurement.operator.coupled == 4
    assert measurement.y.shape[:2] == (1, 60)
    residual = measurement.residual(measurement.reference)
    assert measurement.operator.noise_level(-residual) == pytest.approx(2e-4, rel=0.05)
    assert residual.std().item() == pytest.approx(2e-4, rel=0.05)
