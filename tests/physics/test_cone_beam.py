"""Cone-beam CT: against line integrals of ellipsoids, and against the fan beam in the plane of the orbit."""

import copy
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
from odl.applications.tomo import ConeBeamGeometry
from odl.core.discr.partition import uniform_partition

from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import ConeBeamCT, FanBeamCT, LinearOperator, cone_rays
from ddip_pl.physics.geometry import same_geometry
from ddip_pl.physics.operator import inner


def volume(size, slices=1):
    """Shape of a volume of square slices."""
    return slices, size, size


GEOMETRIES = st.fixed_dictionaries(
    {
        "shape": st.tuples(st.integers(1, 6), st.integers(2, 16)).map(lambda sizes: volume(sizes[1], sizes[0])),
        "angles": st.integers(1, 8) | st.lists(st.floats(-7, 7), min_size=1, max_size=4),
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


@settings(max_examples=40)
@given(geometry=GEOMETRIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adjoint(dtype, tolerance, geometry):
    operator = ConeBeamCT(**geometry).to(dtype)
    operator.scale = 1.0  # cheaper
    x = random(*operator.domain, dtype=dtype)
    ax = operator(x)
    assert ax.shape == (1, len(operator.angles), operator.rows, operator.detectors)
    y = random(*ax.shape, dtype=dtype, seed=1)
    difference = torch.sum(ax * y) - torch.sum(x * operator.adjoint(y))
    assert abs(difference) <= tolerance * ax.norm() * y.norm()


def test_line_integrals_of_ellipsoids():
    """Smooth ellipsoids, `(1 - r^2)^2`, which voxels represent well; their integral has a closed form."""
    size, slices, thickness, distances = 64, 40, 1.6, (1.1, 0.7)
    angles = [0.0, 0.6, math.pi / 2, 2.5, 3.9, 5.5]
    operator = ConeBeamCT(volume(size, slices), angles, thickness, *distances)
    operator.scale = 1.0  # cheaper
    ellipsoids = [  # value; centre and semi-axes along (row, column, slice), in pixels
        (1.0, (5.0, -8.0, 3.0), (20.0, 14.0, 15.0)),
        (0.6, (-2.0, 9.0, -16.0), (14.0, 15.0, 14.0)),
        (-0.8, (-13.0, -6.0, 17.0), (13.0, 12.0, 13.0)),
    ]
    rows, steps = (np.arange(n) - (n - 1) / 2 for n in (size, slices))
    image = np.zeros((slices, size, size))
    expected = np.zeros((len(angles), operator.rows, operator.detectors))
    for value, centre, axes in ellipsoids:
        p, q = ((rows - c) / a for c, a in zip(centre[:2], axes[:2], strict=True))
        z = (steps * thickness - centre[2]) / axes[2]
        image += value * np.maximum(1 - p[:, None] ** 2 - q**2 - z[:, None, None] ** 2, 0) ** 2
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
    x = torch.from_numpy(image)[:, None].float()
    assert relative(operator(x)[0], torch.from_numpy(expected).float()) < 0.01


def test_agrees_with_the_fan_beam_in_the_plane_of_the_orbit():
    size = 64
    row, column = torch.arange(size)[:, None] - 31.5, torch.arange(size) - 31.5
    blobs = (1.0, 10, 5, 6), (0.5, -12, 15, 4), (0.7, 3, -18, 3)  # value, centre, width
    image = sum(a * torch.exp(-((row - p) ** 2 + (column - q) ** 2) / (2 * s**2)) for a, p, q, s in blobs)
    fan = FanBeamCT(volume(size), 40, source_distance=1.4, detector_distance=0.7)
    cone = ConeBeamCT(volume(size, 3), 40, source_distance=1.4, detector_distance=0.7, rows=5)
    assert (cone.detectors, cone.spacing) == (fan.detectors, fan.spacing)
    x = torch.zeros(3, 1, size, size)
    x[1] = image
    assert relative(cone.scale * cone(x)[0, :, 2], fan.scale * fan(x[1:2])[0, 0]) < 0.01


def test_rows_follow_the_slices():
    operator = ConeBeamCT(volume(16, 6), 5)
    x = random(6, 1, 16, 16)
    torch.testing.assert_close(operator(x.flip(0)), operator(x).flip(2))
    top = torch.zeros_like(x)
    top[0] = 1
    seen = operator(top)[0].sum((0, 2))
    assert seen[: operator.rows // 2].sum() > 20 * seen[-(operator.rows // 2) :].sum()


def test_the_detector_covers_the_volume_and_no_more():
    x = torch.ones(8, 1, 32, 32)
    operator = ConeBeamCT(volume(32, 8), 24)
    seen = operator.scale * operator(x)[0]
    assert (seen.amax((0, 2)) > 0).all()
    assert seen[:, [0, -1]].max() < 0.2 * seen.max()
    larger = ConeBeamCT(volume(32, 8), 24, rows=operator.rows + 10, detectors=operator.detectors + 10)
    assert (larger.scale * larger(x)).sum().item() == pytest.approx(seen.sum().item(), rel=5e-3)


def test_pseudo_inverse():
    """With more rays than voxels, all but the sharpest detail comes back."""
    operator = ConeBeamCT(volume(24, 6), 60)
    x = torch.zeros(6, 1, 24, 24)
    x[1:4, :, 5:14, 8:20] = 1
    few, many = operator, ConeBeamCT(volume(24, 6), 60, iterations=100)
    assert relative(few.pseudo_inverse(operator(x)), x) < 0.08
    assert relative(many.pseudo_inverse(operator(x)), x) < 0.02


def test_defaults_cover_any_number_of_slices():
    assert ConeBeamCT(volume(16, 5), 3, rows=4).rows == 4
    assert ConeBeamCT(volume(16, 10), 3).rows > ConeBeamCT(volume(16, 5), 3).rows


def test_settings_are_kept_by_name(tmp_path):
    """The norm of a geometry is computed only once."""
    settings = {
        "shape": volume(16, 5), "angles": [0.3, 2.0], "thickness": 1.5, "source_distance": 1.3,
        "detector_distance": 0.6, "detectors": 20, "spacing": 1.3, "iterations": 7, "cache_dir": tmp_path,
    }  # fmt: skip
    found, expected = ConeBeamCT(**settings), ConeBeamCT(**settings)
    assert repr(found) == repr(expected)
    assert found.iterations == 7
    x = random(5, 1, 16, 16)
    assert torch.equal(found(x), expected(x))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"shape": volume(13, 3)}, {"angles": 6}, {"shape": volume(12, 4)}, {"thickness": 1.1}, {"source_distance": 1.3},
        {"detector_distance": 0.8}, {"rows": 9}, {"detectors": 20}, {"spacing": 1.5},
    ],
)  # fmt: skip
def test_norms_of_other_geometries_are_not_mixed_up(tmp_path, other):
    geometry = {"shape": volume(12, 3), "angles": 5, "rows": 7, "detectors": 21, "spacing": 1.6}
    geometry |= {"cache_dir": tmp_path}
    first = ConeBeamCT(**geometry).scale
    (path,) = tmp_path.iterdir()
    changed = path.stat().st_mtime_ns
    assert ConeBeamCT(**geometry).scale == first
    assert path.stat().st_mtime_ns == changed
    assert ConeBeamCT(**geometry | other).scale != first


def test_is_a_linear_operator_without_state():
    operator = ConeBeamCT(volume(8, 4), 3)
    assert isinstance(operator, LinearOperator)
    assert operator.coupled == 4
    assert operator.state_dict() == {}
    assert not list(operator.parameters())
    assert "shape=(4, 8, 8), angles=3" in repr(operator)


def test_wrong_shapes_are_refused():
    operator = ConeBeamCT(volume(8, 4), 3, rows=5, detectors=9)
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
        ({"shape": volume(0)}, r"shape is \(1, 0, 0\)"),
        ({"angles": []}, r"angles is \[\]"),
        ({"shape": volume(16, 0)}, r"shape is \(0, 16, 16\)"),
        ({"shape": (2, 16, 15)}, "slices of 16 x 15 pixels; cone-beam CT needs square ones"),
        ({"thickness": -1.0}, "thickness is -1.0"),
        ({"source_distance": 0.7}, r"source_distance is 0\.7; expected more than 0\.71"),
        ({"detector_distance": 0.0}, "detector_distance is 0.0"),
        ({"rows": 1.5}, "rows is 1.5"),
        ({"detectors": 0}, "detectors is 0"),
        ({"spacing": math.inf}, "spacing is inf"),
        ({"iterations": 0}, "iterations is 0"),
        ({"rows": 2, "spacing": 100.0}, "no ray meets the volume"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        ConeBeamCT(**{"shape": volume(16), "angles": 5} | bad).scale  # noqa: B018
    assert "\n" not in str(caught.value)


def test_task(phantom_volume):
    """The operator is made for the volume's number of slices."""
    data = yaml.safe_load(CONFIGS.joinpath("task", "cone_beam_ct.yaml").read_text())["data"]
    parser = ArgumentParser()
    parser.add_class_arguments(VolumeDataModule, "data")
    given_data = data | {"path": str(phantom_volume), "size": 16, "slices": 4}
    module = parser.instantiate_classes(parser.parse_string(json.dumps({"data": given_data}))).data
    measurement, _ = module.simulate(16)
    assert len(measurement) == measurement.operator.coupled == 4
    assert measurement.y.shape[:2] == (1, 60)
    residual = measurement.residual(measurement.reference)
    assert measurement.operator.noise_level(-residual) == pytest.approx(2e-4, rel=0.05)
    assert residual.std().item() == pytest.approx(2e-4, rel=0.05)


# --- geometry as data ---------------------------------------------------------------------------------------


def circle(size, angles, rows, detectors, spacing, source, detector):
    """A circular orbit as vectors of each view."""
    along = np.stack([np.sin(angles), np.cos(angles), 0 * angles], axis=1)  # (x, y, z) = (column, row, slice)
    towards = np.stack([np.cos(angles), -np.sin(angles), 0 * angles], axis=1)
    up = np.broadcast_to([0.0, 0.0, spacing], along.shape)
    return np.concatenate([-source * towards, detector * towards, spacing * along, up], axis=1)


def smooth_volume(slices, size):
    grids = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (slices, size, size)), indexing="ij")
    blobs = (1.0, 1, 4, 2, 4), (0.6, -2, -6, 5, 5), (0.8, 0, 3, -8, 3)  # value, centre, width
    parts = (
        a * torch.exp(-sum((g - c) ** 2 for g, c in zip(grids, at, strict=True)) / (2 * w**2)) for a, *at, w in blobs
    )
    return sum(parts)[:, None]


@pytest.mark.parametrize("thickness", [1.0, 1.5])
def test_vectors_of_a_circle(thickness):
    size, slices = 32, 8
    angles = np.arange(12) * 2 * math.pi / 12 + 0.2
    plain = ConeBeamCT(volume(size, slices), angles, thickness)
    vectors = circle(size, angles, plain.rows, plain.detectors, plain.vectors[0, 11], 1.2 * size, 0.9 * size)
    np.testing.assert_allclose(plain.vectors, vectors, atol=1e-9)
    same = ConeBeamCT(
        volume(size, slices), vectors=vectors, rows=plain.rows, detectors=plain.detectors, thickness=thickness
    )
    x = smooth_volume(slices, size)
    assert relative(same.scale * same(x), plain.scale * plain(x)) < 1e-4
    free = cone_rays.FreeRays(plain.shape, vectors, plain.rows, plain.detectors, thickness)
    assert relative(free(x), plain.scale * plain(x)) < 0.01


@pytest.mark.parametrize("side", [1, -1])
def test_circular_orbits_with_offsets_are_fast_and_project_alike(side):
    """Source and detector beside the axis and above the middle, bins higher than wide, from left or from right."""
    size, slices = 32, 8
    angles = np.arange(7) * 2 * math.pi / 7 + 0.2
    vectors = circle(size, angles, 14, 40, 1.5, 40.0, 25.0)
    sideways = vectors[:, 6:9] / 1.5
    vectors[:, :3] += 2 * sideways + [0, 0, 1.2]
    vectors[:, 3:6] += -3 * sideways + [0, 0, -0.7]
    vectors[:, 9:] *= 1.3
    vectors[:, 6:9] *= side
    operator = ConeBeamCT(volume(size, slices), vectors=vectors, rows=14, detectors=40)
    assert isinstance(operator.rays, cone_rays.CircularRays)
    x = smooth_volume(slices, size)
    free = cone_rays.FreeRays(operator.shape, vectors, 14, 40, 1.0)
    assert relative(operator.rays(x), free(x)) < 0.01
    vectors[3, 3] += 0.01  # no circle any more
    other = ConeBeamCT(volume(size, slices), vectors=vectors, rows=14, detectors=40)
    assert isinstance(other.rays, cone_rays.FreeRays)


def test_vectors_of_any_path():
    """Skewed sources and detectors, against closed-form line integrals through a smooth ball."""
    size, slices, radius, at = 48, 24, 11.0, np.array([3.0, -5.0, 2.0])  # (column, row, slice)
    draw = np.random.default_rng(0)
    vectors = circle(size, np.array([0.1, 1.3, 2.9, 4.0]), 14, 25, 2.0, 60.0, 40.0) + draw.normal(size=(4, 12)) * (
        [6.0] * 6 + [0.3] * 6
    )
    operator = ConeBeamCT(volume(size, slices), vectors=vectors, rows=14, detectors=25)
    operator.scale = 1.0  # cheaper
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (slices, size, size)), indexing="ij")
    ball = np.maximum(1 - ((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2) / radius**2, 0) ** 2
    source, centre, right, down = np.split(vectors[:, None, None], 4, axis=-1)
    bins = centre + (np.arange(25)[:, None] - 12) * right + (np.arange(14)[:, None, None] - 6.5) * down
    ray = (bins - source) / np.linalg.norm(bins - source, axis=-1, keepdims=True) / radius
    start = (source - at) / radius
    a, b, c = (ray**2).sum(-1), (ray * start).sum(-1), (start**2).sum(-1) - 1
    expected = 16 / 15 * a**2 * (np.sqrt(np.maximum(b**2 - a * c, 0)) / a) ** 5
    found = operator(torch.from_numpy(ball)[:, None].float())[0]
    assert relative(found, torch.from_numpy(expected).float()) < 0.01


@pytest.fixture(scope="module")
def free():
    vectors = circle(10, np.array([0.3, 1.0, 4.0]), 6, 14, 1.4, 13.0, 9.0)
    vectors += np.random.default_rng(1).normal(size=vectors.shape) * 0.1
    return ConeBeamCT(volume(10, 5), vectors=vectors, rows=6, detectors=14, thickness=1.3)


@pytest.mark.parametrize("at_once", [2**21, 400])
def test_free_rays_are_a_linear_operator(free, monkeypatch, at_once):
    """Also if a view is processed in parts."""
    x, whole = random(*free.domain), free(random(*free.domain))
    monkeypatch.setattr(cone_rays, "SAMPLES_AT_ONCE", at_once)
    assert free.check().adjointness < 1e-5
    torch.testing.assert_close(free(x), whole)
    double = copy.deepcopy(free).double()
    x, y = random(*free.domain, dtype=torch.float64), random(*free.range, dtype=torch.float64)
    assert inner(double(x), y) == pytest.approx(inner(x, double.adjoint(y)), rel=1e-12)
    variable = x.requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * double(variable).square().sum(), variable)
    torch.testing.assert_close(gradient, double.normal(x.detach()))


def test_circular_rays_are_a_linear_operator():
    check = ConeBeamCT(volume(12, 4), 5).check()
    assert check.adjointness < 1e-5
    assert check.norm == 1


@pytest.mark.parametrize("kind", ["circle", "free"])
def test_some_slices(free, kind):
    operator = free if kind == "free" else ConeBeamCT(volume(10, 5), 3, thickness=1.3)
    x = torch.zeros(5, 1, 10, 10)
    x[[1, 3]] = random(2, 1, 10, 10)
    for chosen in [1, 3], torch.tensor([1, 3]), slice(1, 4, 2):
        part = operator.select(chosen)
        assert part.shape == (2, 10, 10)
        assert part.coupled == 2
        torch.testing.assert_close(part(x[[1, 3]]), operator(x))
        y = random(*operator.range)
        torch.testing.assert_close(part.adjoint(y), operator.adjoint(y)[[1, 3]])
        assert part.norm < 1
    assert operator.shape == (5, 10, 10)
    assert operator.norm == 1
    assert operator.select([0, 1, 3]).select([1, 2])(x[[1, 3]]).shape == operator.range


def odl_geometry(pitch=0.0, shift=0.0, pixel=1.0, **options):
    return ConeBeamGeometry(
        uniform_partition(0, 2 * math.pi, 6), uniform_partition(
            np.array([-18 + shift, -8]) * pixel, np.array([18 + shift, 8]) * pixel, (72, 32)
        ), src_radius=22 * pixel, det_radius=11 * pixel, pitch=pitch, **options,
    )  # fmt: skip


def test_an_odl_geometry_that_is_a_circle():
    size, pixel = 16, 0.7
    given = odl_geometry(pixel=pixel)
    with pytest.raises(InputError, match="has no geometry for view-by-view vectors"):
        _ = ConeBeamCT(volume(4), vectors=np.full((1, 12), 9.0), rows=1, detectors=1).geometry
    wide = ConeBeamGeometry(
        given.motion_partition, uniform_partition([-18 * pixel, -6 * pixel], [18 * pixel, 6 * pixel], (24, 8)),
        22 * pixel, 11 * pixel,
    )  # fmt: skip
    operator = ConeBeamCT(volume(size, 4), geometry=wide, pixel=pixel)
    expected = ConeBeamCT(
        volume(size, 4), given.angles, source_distance=22 / 16, detector_distance=11 / 16, rows=8, detectors=24,
        spacing=1.5,
    )  # fmt: skip
    x = random(4, 1, size, size)
    assert isinstance(operator.rays, cone_rays.CircularRays)
    torch.testing.assert_close(operator(x), expected(x))
    assert same_geometry(operator.geometry, wide)
    np.testing.assert_allclose(operator.vectors, pixel * expected.vectors, atol=1e-9)
    assert isinstance(ConeBeamCT(volume(size, 4), geometry=odl_geometry(pitch=5.0)).rays, cone_rays.FreeRays)


@pytest.mark.parametrize(
    "options",
    [{"pitch": 5.0}, {"shift": 2.5}, {"translation": (1.0, -2.0, 0.5)}, {"offset_along_axis": -2.0},
     {"det_shift_func": lambda angle: np.stack([0 * angle, np.sin(angle), 0.3 + 0 * angle], axis=-1)}],
)  # fmt: skip
def test_an_odl_geometry_of_another_kind(options):
    """A point of the volume is projected to where, by ODL's own functions, its ray meets the detector."""
    geometry = odl_geometry(**options)
    operator = ConeBeamCT(volume(16, 10), geometry=geometry)
    operator.scale = 1.0
    assert same_geometry(operator.geometry, geometry)
    point, (row, column, level) = np.array([1.5, -2.5, 1.5]), (9, 5, 6)  # ODL's (x, y, z), and our indices
    x = torch.zeros(10, 1, 16, 16)
    x[level, 0, row, column] = 1
    seen = operator(x)[0].double()
    for i, angle in enumerate(geometry.angles):
        source, middle = geometry.src_position(angle), geometry.det_refpoint(angle)
        axes = geometry.det_axes(angle)
        u, v, _ = np.linalg.solve(np.stack([*axes, source - point], axis=1), source - middle)
        u_bins, v_bins = geometry.det_partition.coord_vectors
        total = seen[i].sum()
        assert float((seen[i].sum(0) * torch.from_numpy(u_bins)).sum() / total) == pytest.approx(u, abs=0.3)
        assert float((seen[i].sum(1) * torch.from_numpy(v_bins)).sum() / total) == pytest.approx(v, abs=0.3)


@pytest.mark.parametrize("make", [
    lambda: ConeBeamCT(volume(12, 4), 5, thickness=1.7, rows=6),
    lambda: ConeBeamCT(volume(16, 4), geometry=odl_geometry(pitch=4.0, shift=1.0)),
    lambda: ConeBeamCT(
        volume(8, 3), vectors=circle(8, np.array([0.0, 2.0]), 4, 9, 1.5, 10.0, 5.0), rows=4, detectors=9, thickness=2.0
    ),
])  # fmt: skip
def test_written_and_read(make):
    operator = make()
    described = operator.describe((0.8, 0.8))
    read = ConeBeamCT.from_description(described, operator.range)
    assert repr(read) == repr(operator)
    assert read.domain == operator.domain
    x = random(*operator.domain)
    torch.testing.assert_close(read(x), operator(x), rtol=1e-4, atol=1e-5)
    assert operator.unit((0.8, 0.8)) == pytest.approx(0.8 * operator.scale)
    np.testing.assert_allclose(read.vectors, 0.8 * operator.vectors, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 0}, "0 slices of 1 mm; expected at least 1"),
        ({"slice_thickness": None}, "attribute 'slice_thickness'"),
        ({"source_distance": 5.0}, "source_distance 5 mm, detector_distance 10.8 mm; expected them positive, and"),
        ({"angles": np.arange(4) * 90.0}, r"sinogram of shape \(1, 5, 6, 26\) with 4 angles"),
        ({"angles": np.arange(5) * 72.0}, "look like degrees"),
        ({"vectors": np.ones((4, 12))}, r"vectors of shape \(4, 12\); expected \(volumes, angles, rows, detectors\)"),
        ({"vectors": np.ones((5, 6))}, r"vectors of shape \(5, 6\); expected \(views, 12\) finite numbers"),
        ({"vectors": np.ones((5, 12))}, "the source is inside the volume in view 0"),
    ],
)
def test_bad_descriptions(change, message):
    described = ConeBeamCT(volume(12, 4), 5, rows=6).describe((1.0, 1.0)) | change
    with pytest.raises(InputError, match=message):
        ConeBeamCT.from_description(described, (1, 5, 6, 26))
