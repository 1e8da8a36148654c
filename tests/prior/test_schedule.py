"""The variance-preserving schedule and its sampler, against closed forms for Gaussian data."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddip_pl.prior.schedule import STEPS, ddim_step, diffuse, noise_schedule, slerp, timesteps, tweedie

ETA = st.floats(0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trajectory(steps: int, start: int = STEPS - 1) -> list[tuple[Tensor, Tensor]]:
    """`abar` before and after each step down to the clean image, float64."""
    abar = noise_schedule().double()
    levels = [*abar[timesteps(start, steps)], abar.new_ones(())]
    return list(itertools.pairwise(levels))


# ------------------------------------------------------------------------------------------------------- schedule


def test_abar_is_the_product_of_one_minus_beta() -> None:
    low, high = Fraction(1, 10_000), Fraction(2, 100)
    product, expected = Fraction(1), []
    for i in range(1000):
        product = Fraction(float(product * (1 - (low + (high - low) * i / 999))))  # to 53 bits at each step
        expected.append(float(product))
    abar = noise_schedule()
    assert abar.dtype == torch.float32
    torch.testing.assert_close(abar.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


def test_abar_falls_from_nearly_clean_to_nearly_noise() -> None:
    abar = noise_schedule()
    assert (abar.diff() < 0).all()
    assert abar[0] == pytest.approx(1 - 1e-4, rel=1e-6)
    assert 0 < abar[-1] < 1e-4


@pytest.mark.parametrize("t", [0, 1, 40, 500, 980, 999])
def test_diffused_image_has_mean_and_variance_of_the_schedule(t: int) -> None:
    x_t = diffuse(torch.full((100_000,), 0.7), normal(100_000).float(), noise_schedule()[t])
    std = math.sqrt(1 - noise_schedule()[t])
    assert x_t.mean().item() == pytest.approx(0.7 * math.sqrt(noise_schedule()[t]), abs=5 * std / math.sqrt(100_000))
    assert x_t.std().item() == pytest.approx(std, rel=0.02)


@given(t=st.integers(0, 999), seed=st.integers(0, 1000))
def test_tweedie_inverts_diffusion_given_the_true_noise(t: int, seed: int) -> None:
    x, noise, abar = normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1 + seed), noise_schedule()[t].double()
    torch.testing.assert_close(tweedie(diffuse(x, noise, abar), noise, abar), x, rtol=0, atol=1e-10)


def test_tweedie_of_a_batch_at_its_own_timesteps_takes_each_slice_for_itself() -> None:
    x, noise = normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1)
    abar = noise_schedule().double()[[3, 500, 999]].view(-1, 1, 1, 1)
    x_t = diffuse(x, noise, abar)
    for i in range(3):
        torch.testing.assert_close(x_t[i], abar[i].sqrt() * x[i] + (1 - abar[i]).sqrt() * noise[i])
    torch.testing.assert_close(tweedie(x_t, noise, abar), x, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------ timesteps


@given(data=st.data(), start=st.integers(1, 999))
def test_timesteps_fall_strictly_and_evenly_from_start_to_zero(data: st.DataObject, start: int) -> None:
    steps = data.draw(st.integers(2, start + 1))
    ts = timesteps(start, steps)
    gaps = [a - b for a, b in itertools.pairwise(ts)]
    assert (ts[0], ts[-1], len(ts)) == (start, 0, steps)
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 1
    assert all(isinstance(t, int) for t in ts)


@given(start=st.integers(1, 999), steps=st.integers(2, 200), spacing=st.floats(0.2, 5))
def test_spaced_timesteps_follow_the_formula_from_start_to_zero_and_never_rise(
    start: int, steps: int, spacing: float
) -> None:
    ts = timesteps(start, steps, spacing)
    assert (ts[0], ts[-1], len(ts)) == (start, 0, steps)
    assert all(isinstance(t, int) for t in ts)
    assert all(a >= b for a, b in itertools.pairwise(ts))
    for i, t in enumerate(ts):
        assert abs(t - start * ((steps - 1 - i) / (steps - 1)) ** spacing) < 0.5 + 1e-9


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [(0.5, [900, 779, 636, 450, 0]), (1.0, [900, 675, 450, 225, 0]), (2.0, [900, 506, 225, 56, 0])],
)
def test_spaced_timesteps_known_by_hand(spacing: float, expected: list[int]) -> None:
    assert timesteps(900, 5, spacing) == expected


@given(start=st.integers(0, 999), steps=st.integers(1, 200))
def test_timesteps_are_even_where_nothing_else_is_asked_for(start: int, steps: int) -> None:
    assert timesteps(start, steps) == timesteps(start, steps, 1.0)


@given(start=st.integers(1, 999), steps=st.integers(2, 200), spacing=st.floats(0.5, 4), more=st.floats(0, 2))
def test_wider_spacing_makes_no_timestep_larger(start: int, steps: int, spacing: float, more: float) -> None:
    narrow, wide = timesteps(start, steps, spacing), timesteps(start, steps, spacing + more)
    assert all(a >= b for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("spacing", [0.5, 1.0, 2.0])
def test_single_timestep_is_the_start(spacing: float) -> None:
    assert timesteps(321, 1, spacing) == [321]


# ----------------------------------------------------------------------------------------------------------- DDIM


@given(eta=ETA)
def test_last_step_returns_the_mean(eta: float) -> None:
    mean, eps, noise = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1), normal(2, 1, 4, 4, seed=2)
    assert torch.equal(ddim_step(mean, eps, noise, torch.tensor(1.0, dtype=torch.float64), eta), mean)


def test_step_without_eta_ignores_the_noise_and_with_full_eta_the_prediction() -> None:
    mean, eps, noise, abar = normal(9), normal(9, seed=1), normal(9, seed=2), noise_schedule()[300].double()
    torch.testing.assert_close(ddim_step(mean, eps, noise, abar, eta=0), diffuse(mean, eps, abar))
    torch.testing.assert_close(ddim_step(mean, eps, noise, abar, eta=1), diffuse(mean, noise, abar))


@given(eta=ETA, t=st.integers(0, 999))
def test_share_of_fresh_noise_is_eta_squared_and_the_sum_keeps_unit_variance(eta: float, t: int) -> None:
    abar, zero, one = noise_schedule()[t].double(), torch.zeros(1).double(), torch.ones(1).double()
    fresh, old = ddim_step(zero, zero, one, abar, eta), ddim_step(zero, one, zero, abar, eta)
    torch.testing.assert_close(fresh**2 + old**2, (1 - abar).view(1))
    torch.testing.assert_close(fresh**2, (1 - abar).view(1) * eta**2)


@given(eta=ETA, steps=st.sampled_from([5, 20]))
@settings(max_examples=30)
def test_ddim_keeps_the_marginals_of_the_forward_diffusion_given_the_clean_image(eta: float, steps: int) -> None:
    """With the true image for the mean, `x_t | x_0 ~ N(sqrt(abar) x_0, 1 - abar)` at every step (Song, lemma 1)."""
    x = normal(20_000, seed=1)
    x_t = diffuse(x, normal(20_000, seed=2), trajectory(steps)[0][0])
    for i, (abar, abar_next) in enumerate(trajectory(steps)):
        eps = (x_t - abar.sqrt() * x) / (1 - abar).sqrt()
        x_t = ddim_step(x, eps, normal(20_000, seed=3 + i), abar_next, eta)
        residual = x_t - abar_next.sqrt() * x
        assert residual.std().item() == pytest.approx(math.sqrt(1 - abar_next), rel=0.03)
        assert x_t.std().item() == pytest.approx(1, rel=0.03)  # that of the images
    assert torch.equal(x_t, x)


def sample_gaussian(eta: float, steps: int, count: int) -> Tensor:
    """Samples for images `x_0 ~ N(0, 1)`, whose exact noise prediction is `sqrt(1 - abar) x_t`."""
    x_t = normal(count)
    for i, (abar, abar_next) in enumerate(trajectory(steps)):
        eps = (1 - abar).sqrt() * x_t
        x_t = ddim_step(tweedie(x_t, eps, abar), eps, normal(count, seed=1 + i), abar_next, eta)
    return x_t


def gaussian_std(eta: float, steps: int) -> float:
    """The exact standard deviation of those samples: the step is linear in `x_t`."""
    variance = 1.0
    for abar, abar_next in trajectory(steps):
        kept = (abar_next * abar).sqrt() + ((1 - abar_next) * (1 - abar) * (1 - eta**2)).sqrt()
        variance = float(kept**2 * variance + (1 - abar_next) * eta**2)
    return math.sqrt(variance)


@given(eta=ETA)
@settings(max_examples=20)
def test_sampling_gaussian_data_with_the_exact_score_ends_at_the_analytic_spread(eta: float) -> None:
    count = 20_000
    samples, std = sample_gaussian(eta, 50, count), gaussian_std(eta, 50)
    assert samples.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
    assert samples.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count))


def test_deterministic_sampling_of_gaussian_data_keeps_the_variance_as_steps_get_finer() -> None:
    errors = [
        abs(sample_gaussian(0, steps, 1_000).std().item() / normal(1_000).std().item() - 1)
        for steps in (10, 50, 250, 1000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.04
    assert errors[-1] < 0.002


# ---------------------------------------------------------------------------------------------------------- slerp


@given(count=st.integers(2, 40), seed=st.integers(0, 1000))
def test_slerp_starts_at_the_first_and_ends_at_the_last_image(count: int, seed: int) -> None:
    first, last = normal(1, 8, 8, seed=seed), normal(1, 8, 8, seed=seed + 1)
    slices = slerp(first, last, count)
    assert slices.shape == (count, 1, 8, 8)
    torch.testing.assert_close(slices[0], first)
    torch.testing.assert_close(slices[-1], last)


def test_slerp_of_one_slice_is_the_first_image() -> None:
    first, last = normal(1, 8, 8), normal(1, 8, 8, seed=1)
    torch.testing.assert_close(slerp(first, last, 1), first[None])


def test_every_slice_between_has_unit_variance() -> None:
    slices = slerp(normal(1, 128, 128), normal(1, 128, 128, seed=1), 11)
    torch.testing.assert_close(slices.std((1, 2, 3)), torch.ones(11).double(), rtol=0.03, atol=0)
    straight = (normal(1, 128, 128) + normal(1, 128, 128, seed=1)) / 2
    assert straight.std() < 0.75  # as linear interpolation would give


def test_neighbours_correlate_by_the_cosine_of_their_angle() -> None:
    count = 31
    slices = slerp(normal(1, 64, 64), normal(1, 64, 64, seed=1), count).flatten(1)
    angle = math.acos(torch.corrcoef(slices[[0, -1]])[0, 1])
    correlation = torch.corrcoef(slices)
    for distance in (1, 10, 20):
        expected = math.cos(distance * angle / (count - 1))
        torch.testing.assert_close(
            correlation.diagonal(distance), torch.full((count - distance,), expected).double(), rtol=0, atol=0.03
        )
    assert correlation.diagonal(1).min() > 0.99
