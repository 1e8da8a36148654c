"""Parallel-beam CT: against its own adjoint, a dense SVD, ODL's ray transform, and a disc of known value."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odl.applications.tomo.geometry.conebeam import FanBeamGeometry
from odl.applications.tomo.geometry.parallel import Parallel2dGeometry
from odl.applications.tomo.operators.ray_trafo import RayTransform
from odl.core.discr.discr_space import uniform_discr
from odl.core.discr.partition import uniform_partition

from ddip_pl.errors import InputError
from ddip_pl.physics import FanBeamCT, LinearOperator, ParallelBeamCT, ct, projector
from ddip_pl.physics.operator import spectral_norm


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
    """Image (1, 1, size, size) without symmetries: a flipped geometry cannot pass for the right one."""
    image = torch.zeros(1, 1, size, size)
    image[..., size // 8 : size // 3, size // 5 : size // 2] = 1.0
    image[..., size // 2 : size - size // 5, size // 2 : size - size // 8] = 0.4
    image[..., size - size // 6 : size - size // 8, size // 6 : size // 4] = 0.8
    return image


def relative(a, b):
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


# --- adjoint, norm, gradients -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(geometry=GEOMETRIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adjoint(dtype, tolerance, geometry):
    operator = ParallelBeamCT(**geometry).to(dtype)
    x, y = random_pair(operator, dtype=dtype)
    ax, aty = operator(x), operator.adjoint(y)
    difference = torch.sum(ax * y) - torch.sum(x * aty)
    assert abs(difference) <= tolerance * torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(geometry=GEOMETRIES)
def test_unit_spectral_norm(geometry):
    operator = ParallelBeamCT(**geometry).double()
    size = operator.shape[1]
    basis = torch.eye(size**2, dtype=torch.float64).unflatten(1, (1, size, size))
    norm = torch.linalg.matrix_norm(operator(basis).flatten(1), 2).item()
    assert 1 - 1e-6 < norm < 1 + 5e-4  # power iteration comes from below, slowly where singular values are close


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
    """With as many rays as there are pixels and more, all but the sharpest detail comes back."""
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
    """Twice as many angles in one half of the directions, out of order and pointing either way."""
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
        (np.arange(8) * 0.1, np.full(8, 0.1)),  # limited: the missing wedge weighs nothing
        (np.array([0, 1, 3, 4]) * math.pi / 5, np.array([1, 1.5, 1.5, 1]) * math.pi / 5),
        (np.array([0.3]), np.array([math.pi])),
    ],
)
def test_angular_weights(angles, expected):
    np.testing.assert_allclose(ct._angular_weights(angles), expected)


def test_hann_is_smoother_on_noise():
    ram_lak, hann = (ParallelBeamCT(volume(64), 60, filter=f) for f in ct.FILTERS)
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
    ParallelBeamCT(volume(16), 7, cache_dir=tmp_path)  # and the rebuilt one was written


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
        ({"angles": [0.0, math.nan]}, "angles is .*finite angles"),
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
        ({"filter": "cosine"}, "filter is 'cosine'; expected one of ram-lak, hann"),
        ({"detectors": 2, "spacing": 100.0}, "no ray meets the image"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        ParallelBeamCT(**{"shape": (2, 16, 16), "angles": 7} | bad)
    assert "\n" not in str(caught.value)
