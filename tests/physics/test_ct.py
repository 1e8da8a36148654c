"""Parallel-beam CT: against its own adjoint, a dense SVD, ODL's ray transform, and a disc of known value."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odl.applications.tomo.backends.astra_setup import astra_projection_geometry, astra_volume_geometry
from odl.applications.tomo.geometry.conebeam import FanBeamGeometry
from odl.applications.tomo.geometry.parallel import Parallel2dGeometry
from odl.applications.tomo.operators.ray_trafo import RayTransform
from odl.core.discr.discr_space import uniform_discr
from odl.core.discr.partition import nonuniform_partition, uniform_partition

from ddip_pl.errors import InputError
from ddip_pl.physics import FanBeamCT, LinearOperator, ParallelBeamCT, ct, projector
from ddip_pl.physics.geometry import describe_geometry, geometry_from, same_geometry
from ddip_pl.physics.operator import spectral_norm

astra = pytest.importorskip(
    "astra", reason="ODL needs astra-toolbox to compare with; see test_rays.py for tests without it"
)


def volume(size, slices=2):
    """Shape of a volume of square slices."""
    return slices, size, size


GEOMETRIES = st.fixed_dictionaries(
    {
        "shape": st.integers(2, 20).map(volume),
        "angles": st.integers(1, 12) | st.lists(st.floats(-4, 4), min_size=1, max_size=6),
        "angular_range": st.floats(0.2, 2 * math.pi),
        "detectors": st.none() | st.integers(3, 30),
        "spacing": st.sampled_from([0.5, 1.0, 1.3]),
    }
)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_pair(operator, slices=2, dtype=torch.float32):
    size, angles, detectors = operator.shape[1], len(operator.angles), operator.detectors
    x = random(slices, 1, size, size, dtype=dtype)
    return x, random(slices, 1, angles, detectors, dtype=dtype, seed=1)


def disc(size, radius):
    """Image (1, 1, size, size) of a disc of value 1, and the distance of each pixel from its centre."""
    grid = torch.arange(size) - (size - 1) / 2
    distance = torch.hypot(grid[:, None], grid[None])
    return (distance < radius).float()[None, None], distance


def phantom(size):
    """Image (1, 1, size, size) without symmetries, so that a flipped geometry is noticed."""
    image = torch.zeros(1, 1, size, size)
    image[..., size // 8 : size // 3, size // 5 : size // 2] = 1.0
    image[..., size // 2 : size - size // 5, size // 2 : size - size // 8] = 0.4
    image[..., size - size // 6 : size - size // 8, size // 6 : size // 4] = 0.8
    return image


def relative(a, b):
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


# --- adjoint, norm, gradients -------------------------------------------------------------------------------


@settings(max_examples=40)
@given(geometry=GEOMETRIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adjoint(dtype, tolerance, geometry):
    operator = ParallelBeamCT(**geometry).to(dtype)
    x, y = random_pair(operator, dtype=dtype)
    ax, aty = operator(x), operator.adjoint(y)
    difference = torch.sum(ax * y) - torch.sum(x * aty)
    assert abs(difference) <= tolerance * torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y)


@settings(max_examples=20)
@given(geometry=GEOMETRIES)
def test_unit_spectral_norm(geometry):
    operator = ParallelBeamCT(**geometry).double()
    size = operator.shape[1]
    basis = torch.eye(size**2, dtype=torch.float64).unflatten(1, (1, size, size))
    norm = torch.linalg.matrix_norm(operator(basis).flatten(1), 2).item()
    assert 1 - 1e-6 < norm < 1 + 5e-4  # power iteration approaches from below, slowly if singular values are close


def test_spectral_norm_of_a_known_matrix():
    matrix = random(7, 5, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(matrix, 2).item()
    assert spectral_norm(lambda x: matrix.T @ (matrix @ x), (5,)) == pytest.approx(expected, rel=1e-6)
    assert spectral_norm(lambda x: 0 * x, (5,)) == 0


def test_spectral_norm_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    spectral_norm(lambda x: x, (5,))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_gradients(slices):
    operator = ParallelBeamCT(volume(5), 4).double()
    x, y = (t.requires_grad_() for t in random_pair(operator, slices, torch.float64))
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradcheck(operator.adjoint, y)
    assert torch.autograd.gradcheck(operator.pseudo_inverse, y)
    assert torch.autograd.gradgradcheck(lambda x: operator.normal(x) ** 2, x)


def test_gradient_of_normal_is_the_normal_operator():
    """`grad 1/2 |A x|^2 = A^T A x`, as unrolled conjugate gradients rely on."""
    operator = ParallelBeamCT(volume(32), 12)
    x = phantom(32).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * operator(x).square().sum(), x)
    assert relative(gradient, operator.normal(x.detach())) < 1e-5


# --- agreement with ODL -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angles", "angular_range", "detectors", "spacing"),
    [(60, math.pi, None, 1.0), (60, 2 * math.pi / 3, None, 1.0), (30, 2 * math.pi, 140, 0.7)],
)
def test_agrees_with_odl(angles, angular_range, detectors, spacing):
    size = 64
    operator = ParallelBeamCT(volume(size), angles, angular_range, detectors, spacing)
    half, width = size / 2, operator.detectors * spacing / 2
    space = uniform_discr([-half, -half], [half, half], [size, size], dtype="float32")
    step = angular_range / angles
    directions = uniform_partition(-step / 2, angular_range - step / 2, angles)
    geometry = Parallel2dGeometry(directions, uniform_partition(-width, width, operator.detectors))
    transform = RayTransform(space, geometry, impl="astra_cpu")

    x = phantom(size)
    expected = torch.from_numpy(transform(space.element(x[0, 0].numpy())).asarray())
    assert relative(operator.scale * operator(x)[0, 0], expected) < 0.01

    back = torch.from_numpy(transform.adjoint(transform.range.element(expected.numpy())).asarray())
    assert relative(operator.scale * operator.adjoint(expected[None, None])[0, 0], back) < 0.01


@pytest.mark.parametrize(
    ("angles", "angular_range", "detectors", "spacing"),
    [(40, 2 * math.pi, None, None), (30, 4 * math.pi / 3, 200, 1.2)],
)
def test_fan_beam_agrees_with_odl(angles, angular_range, detectors, spacing):
    size = 64
    operator = FanBeamCT(volume(size), angles, angular_range, 1.4, 0.7, detectors, spacing)
    half, width = size / 2, operator.detectors * operator.spacing / 2
    space = uniform_discr([-half, -half], [half, half], [size, size], dtype="float32")
    step = angular_range / angles
    directions = uniform_partition(-step / 2, angular_range - step / 2, angles)
    plate = uniform_partition(-width, width, operator.detectors)
    geometry = FanBeamGeometry(directions, plate, src_radius=1.4 * size, det_radius=0.7 * size)
    x = phantom(size)
    expected = RayTransform(space, geometry, impl="astra_cpu")(space.element(x[0, 0].numpy())).asarray()
    assert relative(operator.scale * operator(x)[0, 0], torch.from_numpy(expected)) < 0.01


def test_fan_beam_detector_covers_the_image_and_no_more():
    operator = FanBeamCT(volume(32), 90)
    seen = operator(torch.ones(1, 1, 32, 32))[0, 0]
    assert seen[:, [0, -1]].max() < 0.1 * seen.max()
    assert (seen.amax(0) > 0)[1:-1].all()
    wider = FanBeamCT(volume(32), 90, detectors=operator.detectors + 20)
    assert wider.scale * wider(torch.ones(1, 1, 32, 32)).sum() == pytest.approx(
        float(operator.scale * seen.sum()), rel=1e-3
    )


def test_fan_beam_pseudo_inverse():
    """With at least as many rays as pixels, all but the sharpest detail is recovered."""
    x = phantom(32)
    operator = FanBeamCT(volume(32), 60)
    assert relative(operator.pseudo_inverse(operator(x)), x) < 0.05
    assert relative(FanBeamCT(volume(32), 60, iterations=100).pseudo_inverse(operator(x)), x) < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source_distance": 0.7}, r"source_distance is 0\.7; expected more than 0\.71"),
        ({"source_distance": -1.0}, "source_distance is -1.0"),
        ({"detector_distance": 0.0}, "detector_distance is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"spacing": math.inf}, "spacing is inf"),
    ],
)
def test_bad_fan_beams_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FanBeamCT(volume(16), 5, **settings)


def test_default_detector_covers_the_image():
    assert ParallelBeamCT(volume(64), 3).detectors == math.ceil(64 * math.sqrt(2))
    assert ParallelBeamCT(volume(64), 3, spacing=0.5).detectors == math.ceil(128 * math.sqrt(2))
    operator = ParallelBeamCT(volume(33), 8)
    assert torch.all(operator.adjoint(torch.ones(1, 1, 8, operator.detectors)) > 0)


def test_explicit_angles_equal_equidistant_ones():
    x = phantom(32)
    explicit = ParallelBeamCT(volume(32), [i * 2.0 / 5 for i in range(5)])
    torch.testing.assert_close(ParallelBeamCT(volume(32), 5, angular_range=2.0)(x), explicit(x))


# --- filtered back-projection -------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ["ram-lak", "hann"])
@pytest.mark.parametrize(("angular_range", "spacing"), [(math.pi, 1.0), (2 * math.pi, 1.0), (math.pi, 0.5)])
def test_fbp_of_a_disc(filter, angular_range, spacing):
    operator = ParallelBeamCT(volume(64), 180, angular_range, spacing=spacing, filter=filter)
    x, distance = disc(64, 20)
    reconstruction = operator.pseudo_inverse(operator(x))[0, 0]
    inside, outside = reconstruction[distance < 17], reconstruction[(distance > 23) & (distance < 31)]
    assert inside.mean().item() == pytest.approx(1, abs=0.01)
    assert inside.std() < 0.02
    assert outside.mean().item() == pytest.approx(0, abs=0.01)


def test_fbp_weighs_non_uniform_angles():
    """Twice as many angles in one half of the directions, out of order and with both orientations."""
    angles = np.concatenate([np.arange(0, 1, 1 / 120), np.arange(1, 2, 1 / 60) + 2]) * math.pi / 2
    angles = np.random.default_rng(0).permutation(angles)
    operator = ParallelBeamCT(volume(64), angles)
    x, distance = disc(64, 20)
    reconstruction = operator.pseudo_inverse(operator(x))[0, 0]
    assert reconstruction[distance < 17].mean().item() == pytest.approx(1, abs=0.01)
    assert reconstruction[distance < 17].std() < 0.03


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        (np.arange(6) * math.pi / 6, np.full(6, math.pi / 6)),
        (np.arange(6) * 2 * math.pi / 6, np.full(6, math.pi / 6)),  # every direction twice
        (np.arange(8) * 0.1, np.full(8, 0.1)),  # limited angle: the missing wedge has no weight
        (np.array([0, 1, 3, 4]) * math.pi / 5, np.array([1, 1.5, 1.5, 1]) * math.pi / 5),
        (np.array([0.3]), np.array([math.pi])),
    ],
)
def test_angular_weights(angles, expected):
    np.testing.assert_allclose(ct._angular_weights(angles), expected)


def test_hann_is_smoother_on_noise():
    ram_lak, hann = (ParallelBeamCT(volume(64), 60, filter=f) for f in ("ram-lak", "hann"))
    noise = random(1, 1, 60, ram_lak.detectors)
    assert hann.pseudo_inverse(noise).std() < 0.5 * ram_lak.pseudo_inverse(noise).std()


# --- batches, precision, devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2, 3, projector.SLICES_AT_ONCE + 1, 2 * projector.SLICES_AT_ONCE + 3])
def test_many_slices_equal_slice_by_slice(slices):
    operator = ParallelBeamCT(volume(16), 7)
    for apply, batch in zip(
        (operator, operator.adjoint, operator.pseudo_inverse),
        (random_pair(operator, slices)[i] for i in (0, 1, 1)),
        strict=True,
    ):
        together = apply(batch)
        assert together.is_contiguous()
        one_by_one = torch.cat([apply(part) for part in batch.split(1)])
        torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_strided_input():
    operator = ParallelBeamCT(volume(16), 7)
    x, _ = random_pair(operator, 4)
    torch.testing.assert_close(operator(x.mT), operator(x.mT.contiguous()))


def test_double_precision():
    operator = ParallelBeamCT(volume(16), 7)
    x, _ = random_pair(operator)
    single = operator(x)
    operator.to(torch.float64)
    double = operator(x.double())
    assert double.dtype == torch.float64
    assert operator.pseudo_inverse(double).dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_mixed_precision_leaves_measurements_alone():
    operator = ParallelBeamCT(volume(16), 7)
    x, _ = random_pair(operator, 3)
    expected = operator(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(operator(x), expected)
        assert operator(x.bfloat16()).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("slices", [1, 3, 4])
def test_gpu_equals_cpu(slices):
    operator = ParallelBeamCT(volume(32), 9)
    x, y = random_pair(operator, slices)
    expected = operator(x), operator.adjoint(y), operator.pseudo_inverse(y)
    operator.to("cuda")
    found = operator(x.cuda()), operator.adjoint(y.cuda()), operator.pseudo_inverse(y.cuda())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


def test_is_a_linear_operator_without_state():
    operator = ParallelBeamCT(volume(8), 3)
    assert isinstance(operator, LinearOperator)
    part = operator.select([1])
    assert part.shape == (1, 8, 8)
    assert part.matrix_values is operator.matrix_values  # not copied
    assert operator.state_dict() == {}
    assert not list(operator.parameters())
    assert "shape=(2, 8, 8), angles=3" in repr(operator)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 2, 16, 16), (1, 1, 16, 15)])
def test_wrong_shape(shape):
    operator = ParallelBeamCT(volume(16), 7)
    with pytest.raises(ValueError, match=rf"\(slices, 1, 16, 16\), got \({', '.join(map(str, shape))}\)"):
        operator(torch.zeros(shape))
    for apply in operator.adjoint, operator.pseudo_inverse:
        with pytest.raises(ValueError, match=rf"\(slices, 1, 7, {operator.detectors}\)"):
            apply(torch.zeros(shape))


# --- cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_builder(monkeypatch):
    """Forbid building once called."""

    def refuse(*args):
        raise AssertionError("the matrix was built again")

    return lambda: monkeypatch.setattr(projector, "_build", refuse)


def test_cache_is_used(tmp_path, no_builder):
    first = ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    no_builder()
    second = ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)
    assert first.scale == second.scale
    assert torch.equal(first(phantom(16)), second(phantom(16)))


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (2, 17, 17)},
        {"angles": 8},
        {"angular_range": 3.0},
        {"angles": [0.1 * i for i in range(7)]},
        {"detectors": 9},
        {"spacing": 0.9},
    ],
)
def test_cache_knows_the_geometry(tmp_path, no_builder, other):
    settings = {"shape": (2, 16, 16), "angles": 7, "cache_dir": tmp_path}
    ParallelBeamCT(**settings)
    no_builder()
    with pytest.raises(AssertionError, match="built again"):
        ParallelBeamCT(**settings | other)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "bit"])
def test_damaged_cache_is_rebuilt(tmp_path, no_builder, damage):
    expected = ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)(phantom(16))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    middle = len(content) // 3
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"empty": b"", "text": b"not a matrix", "truncated": content[:-100], "bit": flipped}
    path.write_bytes(damaged[damage])
    assert torch.equal(ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)(phantom(16)), expected)
    no_builder()
    ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)  # and the rebuilt matrix was written


def test_unusable_cache_folder_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert ParallelBeamCT(volume(8), 3, cache_dir=tmp_path / "file" / "folder")(phantom(8)).sum() > 0


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"shape": (2, 16, 15)}, "slices of 16 x 15 pixels; parallel-beam CT needs square ones"),
        ({"angles": None}, "nothing given; expected exactly one of angles, geometry"),
        ({"angles": 0}, "angles is 0"),
        ({"angles": -3}, "angles is -3"),
        ({"angles": []}, r"angles is \[\]"),
        ({"angles": [0.0, math.nan]}, "angles is .*a list, each a number from -1000 to 1000"),
        ({"angles": "60"}, "angles is '60'"),
        ({"angles": ["a"]}, "angles is"),
        ({"angles": 7.5}, "angles is 7.5"),
        ({"shape": (2, 0, 0)}, r"shape is \(2, 0, 0\)"),
        ({"shape": (2, 16.5, 16.5)}, r"shape is \(2, 16\.5, 16\.5\)"),
        ({"angular_range": 0}, "angular_range is 0"),
        ({"angular_range": math.inf}, "angular_range is inf"),
        ({"detectors": 0}, "detectors is 0"),
        ({"spacing": -1.0}, "spacing is -1.0"),
        ({"spacing": "wide"}, "spacing is 'wide'"),
        ({"filter": "cosine"}, "filter is 'cosine'; give ram-lak or hann"),
        ({"detectors": 2, "spacing": 100.0}, "no ray meets the image"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        ParallelBeamCT(**{"shape": (2, 16, 16), "angles": 7} | bad)
    assert "\n" not in str(caught.value)


# --- geometry as data ---------------------------------------------------------------------------------------


def views(count=8):
    return uniform_partition(0.1, 0.1 + math.pi, count)


STANDARD = {
    "parallel_beam": lambda unit=1.0: Parallel2dGeometry(views(), uniform_partition(-12 * unit, 12 * unit, 30)),
    "fan_beam": lambda unit=1.0: FanBeamGeometry(
        views(), uniform_partition(-30 * unit, 30 * unit, 40), 20 * unit, 16 * unit
    ),
}
CLASSES = {"parallel_beam": ParallelBeamCT, "fan_beam": FanBeamCT}
SHIFTED = uniform_partition(-20, 28, 40)
UNUSUAL = {
    "parallel, shifted": lambda: Parallel2dGeometry(views(), uniform_partition(-10, 14, 30)),
    "parallel, moved": lambda: Parallel2dGeometry(views(), uniform_partition(-12, 12, 30), translation=(1.5, -2.0)),
    "parallel, turned": lambda: Parallel2dGeometry(
        views(), uniform_partition(-12, 12, 30), det_pos_init=(1, 1), det_axis_init=(1, -0.5)
    ),
    "fan, shifted": lambda: FanBeamGeometry(views(), SHIFTED, 20, 16),
    "fan, moved": lambda: FanBeamGeometry(views(), SHIFTED, 20, 16, translation=(1.5, -2.0)),
    "fan, turned": lambda: FanBeamGeometry(views(), SHIFTED, 20, 16, src_to_det_init=(1, -1)),
    "fan, tilted": lambda: FanBeamGeometry(views(), SHIFTED, 20, 16, det_axis_init=(1, 0.2)),
    "fan, wobbling": lambda: FanBeamGeometry(
        views(), SHIFTED, 20, 16, src_shift_func=lambda angle: np.stack([np.sin(angle), 0.5 + 0 * angle], axis=-1),
        det_shift_func=lambda angle: np.stack([0 * angle, np.cos(angle)], axis=-1),
    ),
}  # fmt: skip


def operator_of(geometry, **settings):
    return CLASSES[describe_geometry(geometry)["kind"]](volume(16), geometry=geometry, **settings)


@pytest.mark.parametrize("kind", STANDARD)
@pytest.mark.parametrize("pixel", [1.0, 0.7])
def test_a_standard_geometry_is_the_plain_operator(kind, pixel):
    geometry = STANDARD[kind](pixel)
    operator = operator_of(geometry, pixel=pixel)
    lengths = {"spacing": 24 / 30} if kind == "parallel_beam" else {
        "spacing": 1.5, "source_distance": 20 / 16, "detector_distance": 1.0
    }  # fmt: skip
    expected = CLASSES[kind](volume(16), geometry.angles, detectors=operator.detectors, **lengths)
    torch.testing.assert_close(operator(phantom(16)), expected(phantom(16)), rtol=1e-4, atol=1e-5)
    assert operator.scale == pytest.approx(expected.scale, rel=1e-5)
    assert same_geometry(operator.geometry, geometry)
    assert not same_geometry(operator.geometry, STANDARD[kind](1.1 * pixel))


def test_the_matrix_is_the_one_of_odls_own_conversion():
    """Bit by bit for parallel beams; for fan beams ODL gives ASTRA vectors, which it rounds differently.

    (Rays along pixel borders, which these angles avoid, go to the other side.)
    """
    fan = FanBeamCT(volume(64), 0.05 + np.arange(20) * math.pi / 10)
    for operator, tolerance in (ParallelBeamCT(volume(64), 20), 0.0), (fan, 1e-3):
        space = uniform_discr([-32, -32], [32, 32], (64, 64), dtype="float32")
        handle = astra.create_projector(
            operator.discretisation, astra_projection_geometry(operator.geometry, "cpu"),
            astra_volume_geometry(space, "cpu"),
        )  # fmt: skip
        theirs = astra.matrix.get(astra.projector.matrix(handle))
        ours, _ = projector._build(operator.discretisation, operator.beam, 64, operator._geometry)
        assert abs(ours - theirs).power(2).sum() <= tolerance**2 * ours.power(2).sum()


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_geometries(name):
    """A pixel is projected to where, by ODL's own functions, its ray meets the detector."""
    geometry = UNUSUAL[name]()
    operator = operator_of(geometry)
    x, point = torch.zeros(1, 1, 16, 16), np.array([1.5, -3.5])
    x[..., 9, 4] = 1
    seen = operator(x)[0, 0].double()
    for i, angle in enumerate(geometry.angles):
        middle, axis = geometry.det_refpoint(angle), geometry.det_axis(angle)
        ray = geometry.det_to_src(angle, 0) if name.startswith("parallel") else geometry.src_position(angle) - point
        position, _ = np.linalg.solve(np.stack([axis, -ray], axis=1), point - middle)
        bins = torch.from_numpy(geometry.det_partition.coord_vectors[0])
        assert float((seen[i] * bins).sum() / seen[i].sum()) == pytest.approx(position, abs=0.35)
    assert operator.check().adjointness < 1e-5
    assert operator.pseudo_inverse(operator(phantom(16))).isfinite().all()


@pytest.mark.parametrize("name", [*UNUSUAL, *STANDARD])
def test_geometries_are_written_and_read(name):
    geometry = (UNUSUAL | STANDARD)[name]()
    description = describe_geometry(geometry)
    assert same_geometry(geometry_from(description), geometry)
    json.dumps({key: np.asarray(value).tolist() for key, value in description.items()})  # plain numbers
    operator = operator_of(geometry)
    described = operator.describe((0.8, 0.8))
    read = type(operator).from_description(described, (3, 8, operator.detectors))
    assert read.shape == (3, 16, 16)
    assert read.scale == pytest.approx(operator.scale, rel=1e-4)
    torch.testing.assert_close(read(phantom(16)), operator(phantom(16)), rtol=1e-3, atol=1e-3)
    assert operator.unit((0.8, 0.8)) == pytest.approx(0.8 * operator.scale)
    assert same_geometry(operator_of(read.geometry, pixel=0.8).geometry, read.geometry)


def test_the_layout_of_standard_geometries():
    """Names and units as in docs/measurements.md."""
    assert ParallelBeamCT(volume(16), 4, spacing=1.5).describe((0.5, 0.5)).keys() == {
        "angles", "detector_spacing", "image_size", "pixel_size"
    }  # fmt: skip
    described = FanBeamCT(volume(16), 4, spacing=1.5).describe((0.5, 0.5))
    expected = {
        "detector_spacing": 0.75, "image_size": 16, "pixel_size": 0.5, "source_distance": 9.6, "detector_distance": 7.2
    }  # fmt: skip
    np.testing.assert_allclose(described.pop("angles"), np.arange(4) * math.pi / 2)
    assert described == pytest.approx(expected)
    with pytest.raises(InputError, match=r"pixels of 1 x 2 mm; sinograms need square ones"):
        ParallelBeamCT(volume(16), 4).describe((1.0, 2.0))


def test_angles_in_any_order_have_a_geometry():
    """ODL needs increasing angles, so full turns are added."""
    angles = [0.3, 2.0, 0.1, 0.1, -4.0]
    operator = ParallelBeamCT(volume(16), angles)
    found = operator.geometry.angles
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * np.array(angles)))


def test_odl_is_imported_only_where_it_is_needed(tmp_path):
    code = (
        "import sys; from ddip_pl.physics import ConeBeamCT, FanBeamCT, ParallelBeamCT;"
        "[cls((2, 8, 8), 3).describe((1, 1)) for cls in (ParallelBeamCT, FanBeamCT, ConeBeamCT)];"
        "assert 'odl' not in sys.modules; ParallelBeamCT((1, 8, 8), 3).geometry; assert 'odl' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"geometry": STANDARD["fan_beam"]()}, "geometry of kind fan_beam; expected parallel_beam"),
        ({"geometry": 3}, "geometry is a int; expected ODL's Parallel2dGeometry, FanBeamGeometry, ConeBeamGeometry"),
        ({"geometry": FanBeamGeometry(views(), SHIFTED, 20, 16, det_curvature_radius=40)}, "a curved detector"),
        ({"geometry": Parallel2dGeometry(views(), nonuniform_partition([0, 1, 3]))}, "uneven bins"),
        ({"geometry": STANDARD["parallel_beam"](), "pixel": 0}, "pixel is 0; give a number from 1e-09"),
        ({"geometry": STANDARD["parallel_beam"](), "angles": 3}, "angles and geometry given; expected exactly one"),
        ({"geometry": {"kind": "parallel_beam", "angles": np.zeros(3)}}, "attribute 'detector_spacing' is missing"),
    ],
)
def test_bad_geometries(change, message):
    with pytest.raises(InputError, match=message):
        ParallelBeamCT(volume(16), **change)


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"pixel_size": None}, (2, 9, 23), "attribute 'pixel_size'"),
        ({"pixel_size": -1.0}, (2, 9, 23), "pixel size is -1 mm; expected a positive length"),
        ({"angles": np.array(["x"])}, (2, 9, 23), "no dataset 'angles' of numbers"),
        ({"angles": np.full(9, np.nan)}, (2, 9, 23), r"angles of shape \(9,\); expected a list of finite angles"),
        ({}, (9, 23), r"sinogram of shape \(9, 23\); expected 3 axes \(slices, angles, detectors\)"),
        ({}, (2, 23, 9), r"\(2, 23, 9\) with 9 angles; expected \(slices, angles, detectors\); axis 2 looks like"),
        ({}, (9, 2, 23), r"\(9, 2, 23\) with 9 angles; expected \(slices, angles, detectors\); axis 0 looks like"),
        ({}, (2, 8, 23), "with 9 angles; .*no axis has that length"),
        ({"angles": np.arange(9) * 20.0}, (2, 9, 23), "angles from 0 to 160 span more than a full turn in radians and"),
        ({"detector_spacing": 0.0}, (2, 9, 23), "detector spacing is 0 mm; expected it positive"),
        ({"image_size": 0}, (2, 9, 23), "image_size is 0; expected at least 1 pixel"),
        ({"image_size": math.nan}, (2, 9, 23), "attribute 'image_size' is nan; expected 1 number"),
        ({"source_distance": 5.0}, (2, 9, 23), "source_distance 5 mm, detector_distance 14.4 mm; expected them"),
        ({"detector_distance": -5.0}, (2, 9, 23), "source_distance 19.2 mm, detector_distance -5 mm; expected them"),
        ({"source_distance": "far"}, (2, 9, 23), "attribute 'source_distance' is far; expected 1 number"),
        ({"translation": [1.0]}, (2, 9, 23), "attribute 'translation' is .*; expected 2 numbers"),
    ],
)
def test_bad_descriptions(change, data, message):
    described = FanBeamCT(volume(16), 9, detectors=23).describe((1.0, 1.0)) | change
    with pytest.raises(InputError, match=message) as caught:
        FanBeamCT.from_description(described, data)
    assert "\n" not in str(caught.value)
