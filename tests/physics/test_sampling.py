"""Sampling masks: they have the acceleration, centre and density that they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddip_pl.errors import InputError
from ddip_pl.physics import EquispacedLines, PoissonDisc, RandomLines, RandomPoints
from ddip_pl.physics.sampling import measured_centre

LINES = [
    EquispacedLines,
    RandomLines,
    lambda *args, **kwargs: RandomLines(*args, density="gaussian", **kwargs),
]
POINTS = [RandomPoints, lambda *args, **kwargs: RandomPoints(*args, density="uniform", **kwargs)]
IDS = ["equispaced lines", "uniform lines", "gaussian lines"], ["gaussian points", "uniform points"]
OWN = pytest.mark.parametrize("sampling", LINES + POINTS, ids=[*IDS[0], *IDS[1]])


def longest_gap(columns: torch.Tensor) -> int:
    """Most columns in a row that are not measured."""
    measured = np.concatenate([[-1], np.flatnonzero(columns.numpy()), [len(columns)]])
    return int(np.diff(measured).max()) - 1


# --- what all masks have in common --------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    size=st.integers(16, 130),
    acceleration=st.floats(1, 10),
    centre=st.floats(0, 0.1),
    seed=st.integers(0, 1000),
)
@OWN
def test_acceleration_and_centre(sampling, size, acceleration, centre, seed):
    width = round(centre * size)
    lines = bool((sampling(2)(16) == sampling(2)(16)[:1]).all())
    if round((size if lines else size**2) / acceleration) < max(width if lines else width**2, 1):
        with pytest.raises(InputError, match="lower acceleration or centre"):
            sampling(acceleration, centre=centre, seed=seed)(size)
        return
    mask = sampling(acceleration, centre=centre, seed=seed)(size)
    assert mask.dtype == torch.bool
    assert mask.shape == (size, size)
    first = size // 2 - width // 2
    assert (mask[:, first : first + width] if lines else mask[first : first + width, first : first + width]).all()
    possible = size if lines else size**2
    assert int(mask.sum()) * possible // size**2 == round(possible / acceleration)
    assert torch.equal(mask, sampling(acceleration, centre=centre, seed=seed)(size))


@pytest.mark.parametrize("sampling", LINES, ids=IDS[0])
@pytest.mark.parametrize("size", [64, 65])
def test_lines_run_along_ky(sampling, size):
    mask = sampling(4)(size)
    assert (mask == mask[:1]).all()
    assert mask[0].sum() == 16


@OWN
def test_the_zero_frequency_is_in_the_middle_of_the_centre(sampling):
    for size in 20, 21:
        mask = sampling(4, centre=0.05)(size)  # one position
        assert mask[size // 2, size // 2]


@OWN
def test_no_acceleration_measures_all(sampling):
    assert sampling(1)(16).all()


@pytest.mark.parametrize("sampling", [LINES[1], LINES[2], *POINTS])
def test_seeds(sampling):
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    masks = [sampling(4, seed=seed)(64) for seed in (0, 1)]
    assert not torch.equal(*masks)
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


@settings(max_examples=20)
@given(height=st.integers(32, 90), width=st.integers(32, 90), seed=st.integers(0, 100))
@OWN
def test_masks_that_are_not_square(sampling, height, width, seed):
    """The centre is in the middle of each axis and takes the same share of it; all of k-space has the acceleration."""
    mask = sampling(3, centre=0.2, seed=seed)((height, width))
    assert mask.shape == (height, width)
    possible = height * width
    if lines := bool((mask == mask[:1]).all()):
        mask, possible = mask[:1], width
    assert int(mask.sum()) == round(possible / 3)
    middle = [n // 2 - round(0.2 * n) // 2 + torch.arange(round(0.2 * n)) for n in (height, width)]
    assert mask[:, middle[1]].all() if lines else mask[middle[0]][:, middle[1]].all()


def test_lines_of_a_wide_image():
    columns = EquispacedLines(4)((20, 64))[0]
    assert torch.equal(columns, EquispacedLines(4)(64)[0])


# --- their densities ----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(size=st.integers(16, 200), acceleration=st.floats(1.5, 8), centre=st.floats(0, 0.06))
def test_equispaced_lines_are_equispaced(size, acceleration, centre):
    count = round(size / acceleration) - round(centre * size)
    if count < 1:
        return
    columns = EquispacedLines(acceleration, centre)(size)[0]
    middle = size // 2 - round(centre * size) // 2
    outside = np.flatnonzero(np.delete(columns.numpy(), slice(middle, middle + round(centre * size))))
    spacing = (size - round(centre * size)) / count
    assert len(outside) == count
    assert set(np.diff(outside)) <= {int(spacing), int(spacing) + 1}
    assert abs(outside[0] - (size - round(centre * size) - 1 - outside[-1])) <= 1
    assert longest_gap(columns) <= spacing + 1  # also at both ends and next to the centre


@pytest.mark.parametrize(("sampling", "acceleration"), [(RandomLines, 8), (RandomPoints, 16)])
def test_uniform_density(sampling, acceleration):
    masks = [sampling(acceleration, centre=0, seed=seed, density="uniform")(32) for seed in range(400)]
    often = torch.stack(masks).double().mean(0)
    share = 1 / acceleration
    assert (often - share).abs().max() < 5 * (share * (1 - share) / 400) ** 0.5


@pytest.mark.parametrize(("sampling", "acceleration"), [(RandomLines, 64), (RandomPoints, 512)])
def test_gaussian_density(sampling, acceleration):
    """Few positions for many seeds: their standard deviation around the middle is 15 % of k-space on both axes."""
    masks = [sampling(acceleration, centre=0, seed=seed, density="gaussian")(64) for seed in range(600)]
    places = torch.stack(masks).nonzero()[:, 1:].double() - 32
    for axis in (1,) if sampling is RandomLines else (0, 1):
        assert abs(places[:, axis].mean()) < 5 * 9.6 / 600**0.5
        assert places[:, axis].std().item() == pytest.approx(9.6, rel=0.1)


# --- Poisson-disc -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "acceleration"), [(128, 8), (128, 4), (96, 12), (65, 6)])
def test_poisson_disc(size, acceleration):
    pytest.importorskip("sigpy")
    state = np.random.get_state()[1].copy()
    mask = PoissonDisc(acceleration, centre=0.1, seed=3)(size)
    assert mask.dtype == torch.bool
    assert mask.shape == (size, size)
    assert mask.numel() / mask.sum().item() == pytest.approx(acceleration, rel=0.1)
    width = round(0.1 * size)
    first = size // 2 - width // 2
    assert mask[first : first + width, first : first + width].all()
    assert torch.equal(mask, PoissonDisc(acceleration, centre=0.1, seed=3)(size))
    assert not torch.equal(mask, PoissonDisc(acceleration, centre=0.1, seed=4)(size))
    np.testing.assert_array_equal(np.random.get_state()[1], state)

    # Denser towards the centre, and without clumps further out, unlike points drawn independently.
    grid = torch.arange(size) - size // 2
    radius = torch.hypot(grid[:, None].double(), grid.double()) / (size / 2)
    near, far = (mask[(low < radius) & (radius <= low + 0.3)].double().mean() for low in (0.15, 0.65))
    assert near > 1.2 * far > 0
    outer = mask & (radius > 0.6)
    together = (outer[1:] & outer[:-1]).sum().double() / outer.sum()
    assert together < 0.5 * mask[radius > 0.6].double().mean()


@pytest.mark.parametrize("size", [(96, 140), (140, 96)])
def test_poisson_disc_that_is_not_square(size):
    pytest.importorskip("sigpy")
    mask = PoissonDisc(6, centre=0.1)(size)
    assert mask.shape == size
    assert mask.numel() / mask.sum().item() == pytest.approx(6, rel=0.1)
    width = [round(0.1 * n) for n in size]
    first = [n // 2 - w // 2 for n, w in zip(size, width, strict=True)]
    assert mask[first[0] : first[0] + width[0], first[1] : first[1] + width[1]].all()
    radius = torch.hypot(*torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij"))
    near, far = (mask[(low < radius) & (radius <= low + 0.3)].double().mean() for low in (0.25, 0.65))
    assert near > 1.2 * far > 0


def test_poisson_disc_that_cannot_be_had():
    pytest.importorskip("sigpy")
    with pytest.raises(InputError, match="no Poisson-disc mask of 16 x 16 with acceleration 1"):
        PoissonDisc(1.01)(16)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [EquispacedLines, RandomLines, RandomPoints, PoissonDisc])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"acceleration": 0.9}, r"acceleration is 0\.9; give a number from 1 to 1000"),
        ({"acceleration": -4}, "acceleration is -4"),
        ({"acceleration": float("nan")}, "acceleration is nan"),
        ({"acceleration": float("inf")}, "acceleration is inf"),
        ({"centre": -0.1}, r"centre is -0\.1"),
        ({"centre": 24}, "centre is 24"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings(sampling, bad, message):
    with pytest.raises(InputError, match=message) as caught:
        sampling(**{"acceleration": 4} | bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampling", [EquispacedLines, RandomLines])
def test_centre_beyond_the_acceleration(sampling):
    with pytest.raises(InputError, match="acceleration 8 leaves 8 of 64 positions, but the centre has 13"):
        sampling(8, centre=0.2)(64)


@pytest.mark.parametrize("sampling", [EquispacedLines, RandomLines, RandomPoints, PoissonDisc])
def test_acceleration_that_leaves_nothing(sampling):
    with pytest.raises(InputError, match="acceleration 1000 leaves 0 of"):
        sampling(1000, centre=0)(16)


# --- the centre that is measured ------------------------------------------------------------------------------


@settings(max_examples=20)
@given(height=st.integers(8, 40), width=st.integers(8, 40), half=st.integers(0, 10), most=st.integers(2, 24))
def test_measured_centre(height, width, half, most):
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[0] = True
    rows, columns = (slice(max(n // 2 - half, 0), n // 2 + half) for n in (height, width))
    mask[1, rows, columns] = True
    assert measured_centre(mask, most) == min(2 * half, *(n // 2 * 2 for n in (height, width, most)))
