"""Non-Cartesian MRI against the explicit Fourier sum and SigPy; trajectories. See test_operators.py for the rest."""

import math

import numpy as np
import pytest
import torch
from helpers import random, smooth_maps
from hypothesis import given, settings
from hypothesis import strategies as st

from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, Birdcage, NonCartesianMRI, Radial, Spiral
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.physics.trajectory import covered_centre

SHAPE = 2, 16, 16


@settings(max_examples=10)
@given(size=st.integers(6, 20), coils=st.integers(1, 4), samples=st.integers(1, 200), seed=st.integers(0, 100))
def test_is_the_fourier_sum_of_each_coil(size, coils, samples, seed):
    positions = math.pi * (2 * torch.rand(samples, 2, generator=torch.Generator().manual_seed(seed)) - 1).double()
    maps = smooth_maps(size, size, coils)
    operator = NonCartesianMRI((2, size, size), positions, maps)
    x = random(2, 2, size, size, seed=seed)
    r = torch.arange(size, dtype=torch.float64) - size // 2
    rows = torch.exp(-1j * positions[:, :1] * r)
    columns = torch.exp(-1j * positions[:, 1:] * r)
    images = maps * torch.complex(x[:, :1], x[:, 1:])
    expected = torch.einsum("kr,ncrs,ks->nck", rows, images.to(torch.complex128), columns) / size
    found = operator.scale * operator(x)
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_agrees_with_sigpy():
    from sigpy import nufft

    positions = Radial(9)(32)
    x = random(1, 2, 32, 32)
    operator = NonCartesianMRI((1, 32, 32), positions)
    reference = nufft(
        torch.complex(x[0, 0], x[0, 1]).numpy(), positions.numpy() * 32 / (2 * math.pi), oversamp=2, width=6
    )
    np.testing.assert_allclose(
        operator.scale * operator(x)[0, 0].numpy(), reference, atol=2e-3 * np.abs(reference).max()
    )


def test_on_the_grid_it_is_cartesian():
    shape, size, maps = (2, 16, 16), 16, smooth_maps(16, 16, 3)
    grid = 2 * math.pi * (torch.arange(size) - size // 2) / size
    positions = torch.cartesian_prod(grid, grid)
    operator, cartesian = NonCartesianMRI(shape, positions, maps), SENSE(shape, torch.ones(size, size), maps)
    x = random(2, 2, size, size)
    assert operator.scale == pytest.approx(cartesian.scale, rel=1e-3)
    torch.testing.assert_close(operator(x), cartesian(x).flatten(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("trajectory", "error"), [(Radial(100), 0.02), (Radial(30), 0.1), (Spiral(8), 0.03)])
def test_pseudo_inverse_of_coils(trajectory, error):
    """An object with an edge, from fully sampled k-space, or from a third of the samples with eight coils."""
    x = torch.zeros(1, 2, 64, 64)
    x[:, 0, 16:44, 20:52] = 1
    x[:, 1, 24:30, 24:40] = 0.5
    operator = NonCartesianMRI((1, 64, 64), trajectory, Birdcage(8))
    found = operator.pseudo_inverse(operator(x))
    assert (found - x).norm() < error * x.norm()
    assert (operator(found) - operator(x)).norm() < 0.02 * operator(x).norm()


def test_normal_is_the_product():
    operator = NonCartesianMRI((3, 24, 24), Spiral(3, 2.0), smooth_maps(24, 24, 2))
    x = random(3, 2, 24, 24)
    expected = operator.adjoint(operator(x))
    assert (operator.normal(x) - expected).norm() < 1e-4 * expected.norm()


def test_density_compensation_grows_with_the_distance_from_the_centre():
    operator = NonCartesianMRI((1, 32, 32), Radial(51))
    distance = operator.trajectory.norm(dim=0)
    inner, outer = (operator.density[(distance > low) & (distance < low + 0.3)].mean() for low in (0.6, 2.4))
    assert outer / inner == pytest.approx(2.55 / 0.75, rel=0.15)  # like the area that a sample represents


@settings(max_examples=20)
@given(size=st.integers(4, 64), count=st.integers(1, 20))
def test_radial_lines_go_through_the_centre(size, count):
    lines = Radial(count)(size).unflatten(0, (count, 2 * size))
    assert lines.abs().max() <= math.pi * (1 + 1e-6)
    assert torch.equal(lines[:, size], torch.zeros(count, 2, dtype=torch.float64))
    steps = lines.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-9)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full_like(steps[..., 0], math.pi / size))


@settings(max_examples=20)
@given(size=st.integers(16, 64), interleaves=st.integers(1, 8), acceleration=st.floats(1, 4))
def test_turns_of_the_spirals_are_as_far_apart_as_the_acceleration_says(size, interleaves, acceleration):
    positions = Spiral(interleaves, acceleration)(size)
    radius = positions.norm(dim=1)
    assert radius.max() == pytest.approx(math.pi, rel=1e-6)
    turns = size / 2 / (interleaves * acceleration)  # so that the spirals together cross a ray every 2 pi / n
    one = positions[: len(positions) // interleaves]
    angle = torch.atan2(one[:, 0], one[:, 1]).numpy()[1:]
    assert np.unwrap(angle).max() / (2 * math.pi) == pytest.approx(turns, rel=0.05, abs=0.6)
    assert one.diff(dim=0).norm(dim=1)[len(one) // 4 :].max() < 2 * math.pi / size * 1.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Radial(0), "spokes is 0"),
        (lambda: Spiral(0), "interleaves is 0"),
        (lambda: Spiral(2, 0.5), "acceleration is 0.5"),
        (lambda: NonCartesianMRI(SHAPE, torch.zeros(2, 30)), r"trajectory of shape \(2, 30\); expected \(samples, 2\)"),
        (lambda: NonCartesianMRI(SHAPE, torch.full((5, 2), 8.0)), r"positions up to 8; expected radians per pixel"),
        (lambda: NonCartesianMRI(SHAPE, torch.full((5, 2), math.nan)), "positions up to nan"),
        (lambda: NonCartesianMRI(SHAPE, Radial(8), smooth_maps(12, 12, 2)), r"coil maps of shape \(1, 2, 12, 12\)"),
        (lambda: NonCartesianMRI(SHAPE, Radial(8), 0 * smooth_maps(16, 16, 2)), "all zero"),
        (lambda: NonCartesianMRI((2, 2, 2), Radial(8)), "images of 2 x 2; expected square images, at least 4 x 4"),
        (lambda: NonCartesianMRI((2, 16, 12), Radial(8)), "images of 16 x 12; expected square images"),
        (
            lambda: NonCartesianMRI(SHAPE, Radial(8), smooth_maps(16, 16, slices=3)),
            r"coil maps of shape \(3, 6, 16, 16\); expected \(2, coils, 16, 16\), or one slice of it",
        ),
        (
            lambda: NonCartesianMRI(SHAPE, Radial(8), density=torch.ones(48)),
            r"density compensation of shape \(48,\) for 256 samples; expected one value for each",
        ),
        (lambda: NonCartesianMRI(SHAPE, Radial(8), density=torch.zeros(256)), "at least 0 and not all 0"),
        (lambda: NonCartesianMRI(SHAPE, Radial(8), iterations=0), "NonCartesianMRI: iterations is 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("kind", ["cartesian", "radial"])
def test_visible_is_what_the_coils_see(kind: str) -> None:
    maps = torch.randn(2, 3, 16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    maps[0, :, :4] = maps[1, :, :, 10:] = 0
    maps[:, 0] = 0  # a broken coil
    if kind == "cartesian":
        operator: LinearOperator = SENSE(SHAPE, torch.ones(16, 16, dtype=torch.bool), maps)
    else:
        operator = NonCartesianMRI(SHAPE, Radial(8), maps)
    x = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    seen = operator.visible(x)
    torch.testing.assert_close(operator(seen), operator(x))
    expected = x.clone()
    expected[0, :, :4] = expected[1, :, :, 10:] = 0
    assert torch.equal(seen, expected)
    assert torch.equal(operator.select([1]).visible(x[1:]), expected[1:])


def test_the_covered_centre_of_a_trajectory():
    """Spokes leave gaps that grow with the distance from the zero frequency."""
    assert covered_centre(Radial(100)(32), 32, 16) == 16
    assert covered_centre(Radial(100)(32), 32, 24) == 22  # corners of a wider square are outside all spokes
    few = covered_centre(Radial(12)(32), 32, 24)
    assert 4 <= few <= 10
    assert covered_centre(Radial(12)(32), 32, 4) == 4
    assert covered_centre(Radial(12)(32) + 1.0, 32, 24) == 0
