"""Phantoms: pixel by pixel against ODL, in distribution against the papers, and never the same one twice.

Those that look scanned are compared with SciPy's filters and with numpy's interpolation.
"""

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odl.core.discr.discr_space import uniform_discr
from odl.core.phantom.geometric import ellipsoid_phantom
from scipy import ndimage, stats
from torch import Tensor

from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.errors import InputError
from ddip_pl.prior.phantoms import (
    SCANNED,
    RandomEllipses,
    Variant,
    draw_ellipses,
    phantoms,
    render,
    scanned,
    with_phase,
)

VARIANTS: tuple[Literal["uniform", "disk"], ...] = ("uniform", "disk")  # the published ones
ALL: tuple[Variant, ...] = (*VARIANTS, "wide")
MOST = {"uniform": 70, "disk": 140}
DISK = 0.4745
CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))

ELLIPSES = st.lists(
    st.tuples(
        st.floats(-0.4, 1),
        st.floats(0.01, 2),
        st.floats(0.01, 2),
        st.floats(-1.2, 1.2),
        st.floats(-1.2, 1.2),
        st.floats(-7, 7),
    ),
    min_size=1,
    max_size=6,
)


def odl_phantom(ellipses: np.ndarray, size: int) -> np.ndarray:
    """ODL's sum of ellipses; rows without extent are left out, by which it would divide."""
    space = uniform_discr([-1, -1], [1, 1], [size, size], dtype="float64")
    return ellipsoid_phantom(space, ellipses[ellipses[:, 1:3].all(axis=1)]).asarray()


def published_normalisation(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[image != 0] -= image.min()
    return image / image.max()


def distance_from_edges(ellipses: np.ndarray, size: int) -> np.ndarray:
    """How far each pixel centre is from the nearest ellipse's edge, where the ellipse's equation is `radius^2 = 1`."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    nearest = np.full((size, size), np.inf)
    for _, a, b, centre_x, centre_y, rotation in ellipses:
        cos, sin = np.cos(rotation), np.sin(rotation)
        u, v = cos * (x - centre_x) + sin * (y - centre_y), cos * (y - centre_y) - sin * (x - centre_x)
        nearest = np.minimum(nearest, abs((u / a) ** 2 + (v / b) ** 2 - 1))
    return nearest


def draw(count: int, variant: Variant, seed: int = 0) -> Tensor:
    dataset = RandomEllipses(count, seed, variant)
    return torch.from_numpy(np.stack([dataset[i]["ellipses"] for i in range(count)]))


# ------------------------------------------------------------------------------------------------------ rendering


@pytest.mark.parametrize("size", [5, 12, 32, 101, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_phantoms_equal_those_of_odl_in_every_pixel(variant: Variant, size: int) -> None:
    ellipses = draw(4, variant, seed=size)
    expected = np.stack([odl_phantom(e, size) for e in ellipses.numpy()])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(render(ellipses, size).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_images_equal_those_of_the_published_loop(variant: Variant, size: int) -> None:
    ellipses = draw(6, variant, seed=size)
    expected = np.stack([published_normalisation(odl_phantom(e, size)) for e in ellipses.numpy()])
    np.testing.assert_allclose(phantoms(ellipses, size)[:, 0].numpy(), expected, rtol=0, atol=1e-6)


@given(rows=ELLIPSES, size=st.integers(2, 40))
@settings(max_examples=150)
def test_any_ellipses_equal_those_of_odl_off_their_edges(rows: list[tuple[float, ...]], size: int) -> None:
    ellipses = np.array(rows)
    decided = distance_from_edges(ellipses, size) > 1e-6
    ours = render(torch.from_numpy(ellipses)[None], size)[0].numpy()
    np.testing.assert_allclose(ours[decided], odl_phantom(ellipses, size)[decided], rtol=0, atol=1e-12)


def test_first_image_axis_is_x_and_rotation_turns_from_x_to_y() -> None:
    image = render(torch.tensor([[[1.0, 0.6, 0.1, 0.0, 0.0, math.pi / 4]]], dtype=torch.float64), 65)[0]
    assert image[32 + 10, 32 + 10] == 1
    assert image[32 + 10, 32 - 10] == 0
    image = render(torch.tensor([[[1.0, 0.1, 0.1, 0.5, 0.0, 0.0]]], dtype=torch.float64), 65)[0]
    assert image[48, 32] == 1
    assert image[32, 48] == 0


@given(order=st.permutations(range(20)))
@settings(max_examples=20)
def test_values_add_in_any_order(order: list[int]) -> None:
    ellipses = draw(1, "uniform")[:, :20]
    torch.testing.assert_close(render(ellipses[:, order], 32), render(ellipses, 32), rtol=0, atol=1e-12)


def test_phantoms_of_a_batch_do_not_see_each_other() -> None:
    ellipses = draw(5, "uniform")
    alone = torch.cat([render(ellipses[i : i + 1], 48) for i in range(5)])
    torch.testing.assert_close(render(ellipses, 48), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_lie_between_zero_and_one_reach_one_and_have_no_background(variant: Variant) -> None:
    ellipses = draw(32, variant)
    images = phantoms(ellipses, 64)
    assert images.shape == (32, 1, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() == 0
    torch.testing.assert_close(images.amax((1, 2, 3)), torch.ones(32), rtol=0, atol=1e-6)
    background = torch.from_numpy(np.stack([odl_phantom(e, 64) == 0 for e in ellipses.numpy()]))[:, None]
    assert background.any()
    assert not images[background].any()


@pytest.mark.parametrize("value", [0.0, -0.3])
def test_phantom_without_anything_bright_is_empty(value: float) -> None:
    assert not phantoms(torch.tensor([[[value, 0.5, 0.5, 0.0, 0.0, 0.0]]], dtype=torch.float64), 16).any()


# ----------------------------------------------------------------------------------------------- complex phantoms


def complex_batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Complex phantoms `(count, size, size)` and the real ones of the same ellipses."""
    dataset = RandomEllipses(count, 5, "uniform")
    ellipses = torch.from_numpy(np.stack([dataset[i]["ellipses"] for i in range(count)]))
    phase = torch.from_numpy(np.stack([dataset[i]["phase"] for i in range(count)]))
    real = phantoms(ellipses, size)
    parts = with_phase(real, phase)
    assert parts.shape == (count, 2, size, size)
    assert parts.dtype == torch.float32
    return torch.complex(*parts.unbind(1)), real[:, 0]


def test_magnitude_of_complex_phantoms_is_the_real_phantom() -> None:
    image, real = complex_batch(8, 64)
    torch.testing.assert_close(image.abs(), real, rtol=0, atol=1e-6)


def test_phase_at_the_corners_is_that_of_the_coarse_grid() -> None:
    phase = torch.from_numpy(np.random.default_rng(0).uniform(-3, 3, (3, 4, 4)))
    real, imaginary = with_phase(torch.ones(3, 1, 32, 32), phase).unbind(1)
    for x, y in CORNERS:
        torch.testing.assert_close(torch.atan2(imaginary, real)[:, x, y].double(), phase[:, x, y], rtol=0, atol=1e-5)


def test_phase_of_complex_phantoms_is_smooth_and_not_constant() -> None:
    image, real = complex_batch(16, 128)
    for step in (image[:, 1:] * image[:, :-1].conj(), image[:, :, 1:] * image[:, :, :-1].conj()):
        assert step[step.abs() > 1e-3].angle().abs().max() < 0.3
    assert min(i[r > 0.05].angle().std() for i, r in zip(image, real, strict=True)) > 0.1


def test_phase_of_complex_phantoms_turns_all_the_way_round() -> None:
    dataset = RandomEllipses(400, 0, "uniform")
    mean = np.array([dataset[i]["phase"].mean() for i in range(400)])
    assert abs(np.exp(1j * mean).mean()) < 0.15


# ------------------------------------------------------------------------------------------------------- scanned

PLAIN = (0.0, 0.0, 1.0, 0.0)  # no blur, intensities from 0 to 1, 0 stays 0


def scan(ellipses: Tensor, size: int, look: tuple[float, ...] = PLAIN, shading: Tensor | float = 0.0) -> Tensor:
    """Phantoms that all have the same look."""
    looks = torch.tensor(look, dtype=torch.float64).expand(len(ellipses), 4)
    return scanned(ellipses, size, looks, torch.as_tensor(shading).double().expand(len(ellipses), 4, 4))


def pixel_means(ellipses: Tensor, size: int) -> np.ndarray:
    fine = phantoms(ellipses, 2 * size)[:, 0].double().numpy()
    return fine.reshape(-1, size, 2, size, 2).mean(axis=(2, 4))


@pytest.mark.parametrize("size", [32, 45])
def test_plain_look_is_the_phantom_with_pixels_that_are_means_over_their_area(size: int) -> None:
    ellipses = draw(6, "wide")
    images = scan(ellipses, size)
    assert images.shape == (6, 1, size, size)
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images[:, 0].numpy(), pixel_means(ellipses, size), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [32, 45])
@pytest.mark.parametrize("blur", [1.5, 2.0, 3.0])
def test_blur_is_that_of_a_gaussian_filter(blur: float, size: int) -> None:
    sharp, blurred = (scan(draw(4, "wide"), size, (b, 0.0, 1.0, 0.0))[:, 0].numpy() for b in (0.0, blur))
    expected = [ndimage.gaussian_filter(i.astype(float), blur, mode="wrap", truncate=8) for i in sharp]
    assert abs(blurred - sharp).max() > 0.1
    np.testing.assert_allclose(blurred, expected, rtol=0, atol=1e-4 if blur < 2 else 5e-6)  # its kernel is sampled


@given(blur=st.floats(0, 1.2), size=st.integers(4, 33))
@settings(max_examples=30)
def test_blur_of_less_than_a_pixel_is_that_of_a_gaussian_filter_in_fourier_space(blur: float, size: int) -> None:
    ellipses = draw(2, "wide")
    expected = [np.fft.ifft2(ndimage.fourier_gaussian(np.fft.fft2(i), blur)).real for i in pixel_means(ellipses, size)]
    blurred = scan(ellipses, size, (blur, 0.0, 1.0, 0.0))[:, 0].numpy()
    np.testing.assert_allclose(blurred, np.clip(expected, 0, 1), rtol=0, atol=5e-6)


@given(low=st.floats(0, 0.4), high=st.floats(0.6, 1), level=st.floats(0, 0.4))
@settings(max_examples=30)
def test_window_takes_low_to_the_level_and_high_to_one(low: float, high: float, level: float) -> None:
    ellipses = draw(4, "uniform")
    sharp = pixel_means(ellipses, 24)
    images = scan(ellipses, 24, (0.0, low, high, level))[:, 0].numpy()
    np.testing.assert_allclose(images, np.interp(sharp, (low, high), (level, 1)), rtol=0, atol=1e-5)
    assert images[sharp < low].max(initial=level) == pytest.approx(level, abs=1e-6)
    assert images[sharp > high].min(initial=1) == pytest.approx(1, abs=1e-5)


def test_shading_multiplies_the_image_by_a_smooth_field_before_the_window() -> None:
    # Bright everywhere except for a hole in the middle, which is the background.
    ellipses = torch.tensor([[[1, 5, 5, 0, 0, 0], [-1, 0.2, 0.2, 0, 0, 0]]], dtype=torch.float64)
    shading = torch.from_numpy(np.random.default_rng(1).normal(0, 0.3, (4, 4)))
    image = scan(ellipses, 64, (0.0, 0.25, 4.25, 0.0), shading)[0, 0].double()
    factor = (4 * image + 0.25).numpy()
    for x, y in CORNERS:
        assert factor[x, y] == pytest.approx(math.exp(shading[x, y]), abs=1e-5)
    assert abs(np.diff(factor[:, 0])).max() < 0.05
    assert np.ptp(factor[:, 0]) > 0.1
    assert image[32, 32] == 0  # the hole
    twice = scan(ellipses, 64, (0.0, 0.25, 4.25, 0.0), math.log(2))[0, 0]
    assert twice[0, 0] == pytest.approx((2 - 0.25) / 4, abs=1e-6)


def test_blur_comes_before_the_shading() -> None:
    ellipses, shading = draw(3, "uniform"), torch.from_numpy(np.random.default_rng(2).normal(0, 0.3, (4, 4)))
    blurred = scan(ellipses, 32, (1.2, 0.0, 4.0, 0.0))
    field = scan(ellipses, 32, (0.0, 0.0, 4.0, 0.0), shading) / scan(ellipses, 32, (0.0, 0.0, 4.0, 0.0))
    both = scan(ellipses, 32, (1.2, 0.0, 4.0, 0.0), shading)
    there = field.isfinite()
    assert there.float().mean() > 0.5
    torch.testing.assert_close(both[there], (field * blurred)[there], rtol=0, atol=1e-5)


def test_scanned_phantoms_lie_between_their_level_and_one() -> None:
    dataset = RandomEllipses(64, 0, "wide")
    ellipses, look, shading = (
        torch.from_numpy(np.stack([dataset[i][name] for i in range(64)])) for name in ("ellipses", "look", "shading")
    )
    images = scanned(ellipses, 32, look, shading)
    assert images.shape == (64, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.max() == 1
    assert images.min() == 0
    assert (images.amin((1, 2, 3)) >= look[:, 3] - 1e-6).all()
    assert (images == 1).float().mean() < 0.2  # pixels above the window
    assert images.std((1, 2, 3)).min() > 0.02


def test_each_phantom_has_its_own_look() -> None:
    dataset = RandomEllipses(5, 0, "wide")
    parts = [
        torch.from_numpy(np.stack([dataset[i][name] for i in range(5)])) for name in ("ellipses", "look", "shading")
    ]
    together = scanned(parts[0], 24, parts[1], parts[2])
    alone = [scanned(parts[0][i : i + 1], 24, parts[1][i : i + 1], parts[2][i : i + 1]) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------- distribution


@pytest.fixture(scope="module", params=VARIANTS)
def population(request: pytest.FixtureRequest) -> tuple[Variant, np.ndarray, np.ndarray]:
    """Variant, number of ellipses of each of 500 phantoms, and all these ellipses."""
    rng = np.random.default_rng(0)
    drawn = [draw_ellipses(rng, request.param) for _ in range(500)]
    ellipses = np.concatenate([e[e.any(axis=1)] for e in drawn])
    return request.param, np.array([e.any(axis=1).sum() for e in drawn]), ellipses


Population = tuple[Variant, np.ndarray, np.ndarray]


def same(sample: np.ndarray, distribution: object) -> bool:
    """Kolmogorov-Smirnov test: with this many samples a wrong distribution has a p-value of zero."""
    return bool(stats.kstest(sample, distribution.cdf).pvalue > 1e-3)  # type: ignore[attr-defined]


def test_number_of_ellipses_is_a_poisson_number_cut_off_at_its_mean(population: Population) -> None:
    variant, counts, _ = population
    most = MOST[variant]
    numbers = np.minimum(np.arange(10 * most), most)
    weights = stats.poisson(most).pmf(np.arange(10 * most))
    mean = weights @ numbers
    std = math.sqrt(weights @ (numbers - mean) ** 2)
    assert counts.max() == most
    assert counts.mean() == pytest.approx(mean, abs=4 * std / math.sqrt(len(counts)))
    assert counts.std() == pytest.approx(std, rel=0.2)


def test_values_and_rotations_are_uniform(population: Population) -> None:
    _, _, ellipses = population
    assert same(ellipses[:, 0], stats.uniform(-0.4, 1.4))
    assert same(ellipses[:, 5], stats.uniform(0, 2 * math.pi))


def test_semi_axes_are_exponential(population: Population) -> None:
    variant, _, ellipses = population
    scale = 0.2 if variant == "uniform" else 0.2 * DISK
    assert same(ellipses[:, 1], stats.expon(scale=scale))
    assert same(ellipses[:, 2], stats.expon(scale=scale))


def test_centres_are_uniform_on_the_square_or_the_disk(population: Population) -> None:
    variant, _, ellipses = population
    x, y = ellipses[:, 3], ellipses[:, 4]
    if variant == "uniform":
        assert same(x, stats.uniform(-0.9, 1.8))
        assert same(y, stats.uniform(-0.9, 1.8))
    else:
        assert same(np.hypot(x, y), stats.triang(1, 0, DISK))  # radius triangular: even over the disk's area
        assert same(np.arctan2(y, x), stats.uniform(-math.pi, 2 * math.pi))


def test_parameters_are_independent(population: Population) -> None:
    _, _, ellipses = population
    correlation = np.corrcoef(ellipses, rowvar=False) - np.eye(6)
    assert abs(correlation).max() < 4 / math.sqrt(len(ellipses))


@pytest.fixture(scope="module")
def wide() -> dict[str, np.ndarray]:
    """The random parameters of 1500 phantoms of the wide family."""
    dataset = RandomEllipses(1500, 0, "wide")
    items = [dataset[i] for i in range(1500)]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def test_wide_family_is_scanned_in_its_share_and_a_disk_in_a_third_whatever_the_other(
    wide: dict[str, np.ndarray],
) -> None:
    disk = wide["ellipses"][:, 70:].any(axis=(1, 2))
    assert wide["ellipses"].shape == (1500, 140, 6)
    assert wide["scanned"].mean() == pytest.approx(SCANNED, abs=4 * math.sqrt(0.25 / 1500))
    assert disk.mean() == pytest.approx(1 / 3, abs=4 * math.sqrt(0.25 / 1500))
    assert wide["scanned"][disk].mean() == pytest.approx(SCANNED, abs=4 * math.sqrt(0.25 / 500))


def test_wide_family_is_made_of_the_published_ones(wide: dict[str, np.ndarray]) -> None:
    disk = wide["ellipses"][:, 70:].any(axis=(1, 2))
    for variant, drawn in (("disk", wide["ellipses"][disk]), ("uniform", wide["ellipses"][~disk])):
        used = drawn.any(axis=2)
        assert used.sum(axis=1).mean() == pytest.approx(MOST[variant], rel=0.1)
        assert same(drawn[used][:, 1], stats.expon(scale=0.2 if variant == "uniform" else 0.2 * DISK))
        assert same(drawn[used][:, 0], stats.uniform(-0.4, 1.4))
    assert same(np.hypot(*wide["ellipses"][disk][:, 0, 3:5].T), stats.triang(1, 0, DISK))
    assert same(wide["ellipses"][~disk][:, 0, 3], stats.uniform(-0.9, 1.8))


def test_looks_are_drawn_from_their_ranges(wide: dict[str, np.ndarray]) -> None:
    blur, low, high, level = wide["look"].T
    assert same(blur, stats.uniform(0, 1.2))
    assert same(low, stats.uniform(0, 0.4))
    assert same(high, stats.uniform(0.6, 0.4))
    assert (level == 0).mean() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 1500))
    assert same(level[level > 0], stats.uniform(0, 0.4))
    correlation = np.corrcoef(wide["look"], rowvar=False) - np.eye(4)
    assert abs(correlation).max() < 4 / math.sqrt(1500)


def test_shading_is_gaussian_of_a_strength_that_varies(wide: dict[str, np.ndarray]) -> None:
    strength = wide["shading"].std(axis=(1, 2))
    assert strength.mean() == pytest.approx(0.15, rel=0.1)
    assert abs(wide["shading"].mean()) < 0.01
    assert strength.min() < 0.01
    assert 0.25 < strength.max() < 0.6


# ---------------------------------------------------------------------------------------------------- seeds, ranks


def data_module(
    rank: int = 0, ranks: int = 1, training: bool = True, done: int = 0, **arguments: Any
) -> EllipsesDataModule:
    """The data module of one of several processes, in an epoch of which some batches are done."""
    module = EllipsesDataModule(**{"image_size": 16, "batch_size": 4, "epoch_size": 16} | arguments)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=rank, training=training, fit_loop=SimpleNamespace(batch_idx=done - 1)
    )
    return module


def batches(module: EllipsesDataModule, epoch: int = 0) -> Iterator[Tensor]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return (module.on_after_batch_transfer(batch, 0) for batch in loader)


def keys(module: EllipsesDataModule, epoch: int = 0) -> list[bytes]:
    """One key for each image."""
    return [image.numpy().tobytes() for batch in batches(module, epoch) for image in batch]


@pytest.mark.parametrize("variant", ["uniform", "wide"])
def test_phantom_is_a_function_of_seed_and_index(variant: Variant) -> None:
    first, again, other = (RandomEllipses(5, seed, variant) for seed in (1, 1, 2))
    assert ("scanned" in first[3]) == (variant == "wide")
    assert all(np.array_equal(first[3][name], again[3][name]) for name in first[3])
    for name in first[3].keys() - {"scanned"}:
        assert not np.array_equal(first[3][name], first[4][name])
        assert not np.array_equal(first[3][name], other[3][name])


@pytest.mark.parametrize("variant", ALL)
def test_same_seed_trains_on_the_same_phantoms_and_another_on_others(variant: Variant) -> None:
    torch.manual_seed(7)
    first, again = keys(data_module(variant=variant)), keys(data_module(variant=variant))
    torch.manual_seed(8)
    assert first == again
    assert len(set(first)) == 16
    assert not set(first) & set(keys(data_module(variant=variant)))


def test_no_phantom_comes_twice_whatever_the_rank_and_epoch() -> None:
    torch.manual_seed(0)
    shares = [keys(data_module(rank, 2), epoch) for rank in (0, 1) for epoch in (0, 1)]
    assert [len(share) for share in shares] == [8, 8, 8, 8]
    assert len({key for share in shares for key in share}) == 32


def test_two_ranks_share_the_phantoms_of_one() -> None:
    torch.manual_seed(0)
    for epoch in (0, 3):
        assert sorted(keys(data_module(0, 2), epoch) + keys(data_module(1, 2), epoch)) == sorted(
            keys(data_module(), epoch)
        )


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 1)])
def test_an_epoch_goes_on_after_the_batches_that_are_done(ranks: int, workers: int) -> None:
    torch.manual_seed(0)
    for rank in range(ranks):
        whole = keys(data_module(rank, ranks), epoch=1)
        assert keys(data_module(rank, ranks, done=1, num_workers=workers), epoch=1) == whole[4:]


def test_workers_give_the_phantoms_that_there_are_without_them() -> None:
    torch.manual_seed(0)
    without = keys(data_module(), epoch=1)
    assert len(set(without)) == 16
    assert keys(data_module(num_workers=2), epoch=1) == without


def test_validation_phantoms_are_always_the_same_and_none_of_training() -> None:
    def validation(seed: int) -> list[bytes]:
        torch.manual_seed(seed)
        module = data_module(training=False, validation_size=6)
        images = torch.cat([module.on_after_batch_transfer(batch, 0) for batch in module.val_dataloader()])
        return [image.numpy().tobytes() for image in images]

    assert len(set(validation(1))) == 6
    assert validation(1) == validation(2)
    assert not set(validation(1)) & set(keys(data_module()))


@pytest.mark.parametrize("variant", ALL)
def test_data_module_gives_complex_phantoms_of_the_same_magnitude(variant: Variant) -> None:
    torch.manual_seed(0)
    real, parts = (next(batches(data_module(variant=variant, channels=channels))) for channels in (1, 2))
    assert parts.shape == (4, 2, 16, 16)
    torch.testing.assert_close(parts.norm(dim=1, keepdim=True), real, rtol=0, atol=1e-6)
    assert parts[:, 1].any()


def test_variant_reaches_the_phantoms() -> None:
    torch.manual_seed(0)
    square, disk = (next(batches(data_module(image_size=64, variant=variant))) for variant in VARIANTS)
    corners = (..., slice(0, 6), slice(0, 6))
    assert square[corners].any()
    assert not disk[corners].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_come_as_published(variant: Variant) -> None:
    module = data_module(variant=variant, training=False)
    batch = next(iter(module.val_dataloader()))
    assert torch.equal(module.on_after_batch_transfer(batch, 0), phantoms(batch["ellipses"], 16))


@pytest.mark.parametrize("batch_size", [1, 12])
def test_wide_batches_are_scanned_where_drawn_so_and_the_others_come_as_published(batch_size: int) -> None:
    module = data_module(variant="wide", training=False, validation_size=12, batch_size=batch_size, image_size=24)
    kinds: set[bool] = set()
    for batch in module.val_dataloader():
        images = module.on_after_batch_transfer(batch, 0)
        assert images.shape == (batch_size, 1, 24, 24)
        assert images.dtype == torch.float32
        published = phantoms(batch["ellipses"], 24)
        other = scanned(batch["ellipses"], 24, batch["look"], batch["shading"])
        for i, chosen in enumerate(batch["scanned"].tolist()):
            kinds.add(chosen)
            if chosen:
                torch.testing.assert_close(images[i], other[i], rtol=0, atol=1e-6)
                assert (images[i] - published[i]).abs().max() > 0.05
            else:
                assert torch.equal(images[i], published[i])
    assert kinds == {False, True}


# ---------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("variant", ["uniform", "wide"])
@pytest.mark.parametrize("channels", [1, 2])
def test_crop_is_a_window_of_the_whole_phantom(channels: int, variant: Variant) -> None:
    torch.manual_seed(0)
    settings = {"image_size": 20, "channels": channels, "variant": variant}
    whole = torch.cat(list(batches(data_module(**settings))))
    crops = torch.cat(list(batches(data_module(**settings, crop=12))))
    assert crops.shape == (16, channels, 12, 12)
    windows = whole.unfold(2, 12, 1).unfold(3, 12, 1)  # (phantoms, channels, 9, 9, 12, 12)
    found = (windows == crops[:, :, None, None]).all(dim=-1).all(dim=-1).all(dim=1)
    assert found.any(dim=2).any(dim=1).all()
    assert len({tuple(match.nonzero()[0].tolist()) for match in found}) > 8  # not always the same window


def test_every_window_can_be_drawn() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 16)
    module = data_module(image_size=16, crop=14, epoch_size=200, batch_size=200)
    batch = next(iter(module.train_dataloader()))
    # One tiny disc in the middle pixel shows where each window was cut out.
    batch["ellipses"] = torch.zeros(200, 1, 6, dtype=torch.float64)
    batch["ellipses"][:, 0] = torch.tensor([1, 0.05, 0.05, ramp[8], ramp[8], 0])
    places = {tuple(image[0].nonzero()[0].tolist()) for image in module.on_after_batch_transfer(batch, 0)}
    assert places == {(x, y) for x in (6, 7, 8) for y in (6, 7, 8)}


@pytest.mark.parametrize(("share", "expected"), [(0.0, {(8, 8)}), (0.5, {(8, 8), (2, 16)}), (1.0, {(2, 16)})])
def test_whole_phantoms_take_their_share_of_the_batches_at_the_same_cost(
    share: float, expected: set[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    shapes = [images.shape for images in batches(data_module(crop=8, whole=share, batch_size=8, epoch_size=800))]
    assert {(shape[0], shape[-1]) for shape in shapes} == expected
    assert sum(shape[-1] == 16 for shape in shapes) == pytest.approx(100 * share, abs=20)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("variant", ["uniform", "wide"])
def test_whole_phantoms_among_crops_are_those_of_training_without_crops(variant: Variant, channels: int) -> None:
    torch.manual_seed(0)
    settings = {"variant": variant, "channels": channels, "batch_size": 8}
    without = torch.stack(list(batches(data_module(**settings))))
    among = torch.stack(list(batches(data_module(**settings, crop=8, whole=1.0))))
    assert among.shape == (2, 2, channels, 16, 16)
    torch.testing.assert_close(among, without[:, :2], rtol=0, atol=1e-6)


def test_crop_of_the_whole_size_is_the_phantom() -> None:
    torch.manual_seed(0)
    assert keys(data_module(crop=16)) == keys(data_module())


def test_validation_is_on_whole_phantoms() -> None:
    module = data_module(training=False, crop=8)
    assert module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0).shape[-2:] == (16, 16)


@pytest.mark.parametrize("crop", [0, -1, 17])
def test_crop_outside_the_image_is_refused_in_one_line(crop: int) -> None:
    with pytest.raises(InputError) as error:
        EllipsesDataModule(image_size=16, crop=crop)
    assert re.fullmatch(rf".*crop is {crop}; give .*", str(error.value))
