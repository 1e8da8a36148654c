"""Total variation: the differences, the shrinkage, and the reconstruction against solutions found in other ways."""

from functools import partial
from itertools import combinations, pairwise
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT, simulate
from ddip_pl.solvers.admm import (
    ACROSS_SLICES,
    ALL_AXES,
    LeastSquares,
    Split,
    admm_step,
    differences,
    differences_adjoint,
    shrink,
    total_variation,
    tv_iterations,
)

CHOICES = [axes for count in (1, 2, 3) for axes in combinations(ALL_AXES, count)]


class Matrix(LinearOperator):
    """A matrix of unit norm on the pixels of a slice; counts how often it is applied."""

    def __init__(self, matrix: Tensor, *image: int):
        super().__init__((4, *image[1:]))
        self.matrix, self.image, self.calls = matrix / torch.linalg.matrix_norm(matrix, 2), image, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).view(-1, *self.image)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.matrix).T).view(-1, *self.image)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def boxes(slices: int, channels: int, height: int, width: int) -> Tensor:
    """A piecewise constant volume."""
    x = torch.zeros(slices, channels, height, width, dtype=torch.float64)
    x[:, :, height // 4 : -height // 4, 1:-1] = 0.5
    x[1:, :1, height // 2 :, : width // 2] = 0.9
    return x


def problem(kind: str, channels: int = 1, noise: float = 0.1) -> Measurement:
    """Noisy data of 4 slices with 7 x 6 pixels."""
    image = channels, 7, 6
    rows = {"denoising": prod(image), "too few data": prod(image) // 2, "enough data": 2 * prod(image)}[kind]
    operator = Matrix(torch.eye(rows, dtype=torch.float64) if kind == "denoising" else randn(rows, prod(image)), *image)
    truth = boxes(4, *image)
    y = operator(truth)
    return Measurement(y + noise * y.std() * randn(*y.shape, seed=1), operator, noise, truth)


def data_term(measurement: Measurement) -> LeastSquares:
    A = measurement.operator
    return LeastSquares(lambda x: A.adjoint(measurement.residual(x)), A.normal)


def minimise(
    measurement: Measurement, strength: float, tolerance: float = 3e-3, most: int = 500, start: Tensor | None = None
) -> Tensor:
    """The last volume of `tv_iterations`, by default from the pseudo-inverse."""
    start = measurement.operator.pseudo_inverse(measurement.y) if start is None else start
    *_, (x, _) = tv_iterations(data_term(measurement), start, strength, tolerance, most)
    return x


def objective(measurement: Measurement, x: Tensor, strength: float) -> float:
    """What the reconstruction minimises, computed with NumPy."""
    matrix, y = measurement.operator.matrix.numpy(), measurement.y.numpy()
    z = x.numpy()
    steps = [np.diff(z, axis=axis, append=z.take([-1], axis)) for axis in ALL_AXES]
    variation = np.sqrt(sum(step**2 for step in steps).sum(1)).sum()
    return float(((z.reshape(len(z), -1) @ matrix.T - y) ** 2).sum() / 2 + strength * variation)


def chambolle_pock(measurement: Measurement, strength: float, iterations: int = 4000) -> Tensor:
    """The same problem by the primal-dual algorithm of Chambolle & Pock (2011), which shares nothing with ADMM."""
    matrix, y = measurement.operator.matrix.numpy(), measurement.y.numpy()

    def gradient(x: np.ndarray) -> np.ndarray:
        d = np.zeros((3, *x.shape))
        d[0, :-1], d[1, :, :, :-1], d[2, ..., :-1] = (np.diff(x, axis=axis) for axis in ALL_AXES)
        return d

    def minus_divergence(d: np.ndarray) -> np.ndarray:
        x = np.zeros(d.shape[1:])
        x[:-1] -= d[0, :-1]
        x[1:] += d[0, :-1]
        x[:, :, :-1] -= d[1, :, :, :-1]
        x[:, :, 1:] += d[1, :, :, :-1]
        x[..., :-1] -= d[2, ..., :-1]
        x[..., 1:] += d[2, ..., :-1]
        return x

    shape = len(y), *measurement.operator.image
    x = bar = np.zeros(shape)
    p, q = np.zeros_like(y), np.zeros((3, *shape))
    step = 1 / np.sqrt(1 + 12)  # the norm of (A, D) squared is at most 1 + 4 * 3
    for _ in range(iterations):
        p = (p + step * (bar.reshape(len(y), -1) @ matrix.T - y)) / (1 + step)
        q = q + step * gradient(bar)
        q /= np.maximum(1, np.sqrt((q**2).sum((0, 2), keepdims=True)) / strength)
        previous, x = x, x - step * ((p @ matrix).reshape(shape) + minus_divergence(q))
        bar = 2 * x - previous
    return torch.from_numpy(x)


# --- differences ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)),
    axes=st.sampled_from(CHOICES),
    seed=st.integers(0, 1000),
)
def test_adjoint_is_exact(shape: tuple[int, ...], axes: tuple[int, ...], seed: int) -> None:
    x, d = randn(*shape, seed=seed), randn(len(axes), *shape, seed=seed + 1)
    forward, back = differences(x, axes), differences_adjoint(d, axes)
    assert forward.shape == d.shape
    assert back.shape == x.shape
    assert float((forward * d).sum()) == pytest.approx(float((x * back).sum()), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("axes", CHOICES)
def test_differences_are_those_of_numpy_and_do_not_wrap_around(axes: tuple[int, ...]) -> None:
    x = randn(3, 2, 4, 5)
    for found, axis in zip(differences(x, axes), axes, strict=True):
        n = x.shape[axis] - 1
        np.testing.assert_allclose(found.narrow(axis, 0, n), np.diff(x.numpy(), axis=axis), atol=1e-14)
        assert not found.narrow(axis, n, 1).any()


@pytest.mark.parametrize("axis", ALL_AXES)
def test_what_lies_behind_the_last_voxel_plays_no_part(axis: int) -> None:
    d = torch.zeros(1, 3, 1, 3, 3)
    d[0].narrow(axis, 2, 1).fill_(1)
    assert not differences_adjoint(d, (axis,)).any()


def test_differences_leave_what_they_are_given_alone() -> None:
    x, d = randn(3, 1, 4, 4), randn(3, 3, 1, 4, 4)
    given_x, given_d = x.clone(), d.clone()
    differences(x, ALL_AXES)
    differences_adjoint(d, ALL_AXES)
    assert torch.equal(x, given_x)
    assert torch.equal(d, given_d)


# --- total variation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", CHOICES)
def test_constant_volume_has_none(axes: tuple[int, ...]) -> None:
    assert float(total_variation(torch.full((3, 1, 4, 5), 0.7), axes)) == 0


def test_of_a_box() -> None:
    """2 x 3 x 4 voxels of height 0.5: 26 voxels before a face, 11 on a face, 6 on an edge, 1 in a corner."""
    x = torch.zeros(5, 1, 6, 7, dtype=torch.float64)
    x[2:4, :, 1:4, 2:6] = 0.5
    assert float(total_variation(x)) == pytest.approx(0.5 * (26 + 11 + 6 * 2**0.5 + 3**0.5))
    assert float(total_variation(x, ACROSS_SLICES)) == pytest.approx(0.5 * 2 * 12)
    assert float(total_variation(x, (2, 3))) == pytest.approx(0.5 * 2 * (4 + 3 + (4 - 1) + (3 - 1) + 2**0.5))


def test_edges_of_two_channels_at_one_place_count_once() -> None:
    x = boxes(4, 1, 8, 8)
    assert float(total_variation(torch.cat([3 * x, 4 * x], 1))) == pytest.approx(5 * float(total_variation(x)))


# --- shrinkage ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    axes=st.integers(1, 3), channels=st.integers(1, 2), threshold=st.floats(1e-3, 3), seed=st.integers(0, 1000),
)  # fmt: skip
def test_shrink_fulfils_the_optimality_conditions(axes: int, channels: int, threshold: float, seed: int) -> None:
    """z minimises threshold |z| + |z - d|^2 / 2 exactly if d - z is threshold times a subgradient of |.| at z."""
    d = randn(axes, 3, channels, 4, 4, seed=seed)
    z = shrink(d, threshold)
    dual = d - z
    length = dual.square().sum((0, 2)).sqrt()
    assert (length <= threshold * (1 + 1e-9)).all()
    assert torch.allclose((dual * z).sum((0, 2)), threshold * z.square().sum((0, 2)).sqrt(), atol=1e-9)


@pytest.mark.parametrize("d", [(0.3, 1.5), (-2.0, 0.1), (0.2, -0.3), (0.9, 0.0)])
def test_shrink_finds_the_minimum(d: tuple[float, float]) -> None:
    def cost(z: np.ndarray) -> float:
        return 0.5 * np.hypot(*z) + ((z - d) ** 2).sum() / 2

    expected = minimize(cost, d, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}).x
    vector = torch.tensor(d, dtype=torch.float64)
    for shape in ((2, 1, 1, 1, 1), (1, 1, 2, 1, 1)):  # two axes, or two channels
        np.testing.assert_allclose(shrink(vector.view(shape), 0.5).flatten(), expected, atol=1e-6)


def test_shrink_treats_every_voxel_by_itself() -> None:
    found = shrink(torch.tensor([3.0, -0.2, 0.0, -1.5]).view(1, 2, 1, 1, 2), 0.5)
    assert torch.allclose(found.flatten(), torch.tensor([2.5, 0.0, 0.0, -1.0]))


# --- reconstruction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "channels"), [("denoising", 1), ("denoising", 2), ("too few data", 1), ("enough data", 1)]
)
@pytest.mark.parametrize("strength", [0.01, 0.1])
def test_agrees_with_another_algorithm(kind: str, channels: int, strength: float) -> None:
    measurement = problem(kind, channels)
    found = minimise(measurement, strength, tolerance=1e-5)
    other = chambolle_pock(measurement, strength)
    expected = objective(measurement, other, strength)
    assert objective(measurement, found, strength) == pytest.approx(expected, rel=2e-5)
    if kind != "too few data":  # where one volume only is the best
        assert torch.allclose(found, other, atol=2e-3)


@pytest.mark.parametrize("kind", ["denoising", "too few data"])
def test_no_volume_nearby_is_better(kind: str) -> None:
    measurement, strength = problem(kind), 0.1
    found = minimise(measurement, strength, tolerance=1e-5)
    best = objective(measurement, found, strength)
    assert measurement.reference is not None
    directions = [randn(*found.shape, seed=seed) for seed in range(20)]
    directions += [found, torch.ones_like(found), measurement.reference - found]
    directions += [measurement.operator.pseudo_inverse(measurement.y) - found]
    for direction in directions:
        for size in (-1e-1, -1e-2, 1e-2, 1e-1):
            assert objective(measurement, found + size * direction, strength) > (1 - 2e-6) * best


def test_denoised_step_across_slices_is_known_exactly() -> None:
    """3 slices of 0 and 5 of 1, one pixel each: the levels move towards each other by strength / slices."""
    y = torch.tensor([0.0] * 3 + [1.0] * 5, dtype=torch.float64)[:, None]
    measurement = Measurement(y, Matrix(torch.eye(1, dtype=torch.float64), 1, 1, 1), 0.0)
    found = minimise(measurement, 0.6, tolerance=1e-7, most=3000).flatten()
    expected = torch.tensor([0.6 / 3] * 3 + [1 - 0.6 / 5] * 5, dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-5)


def test_start_does_not_matter() -> None:
    measurement = problem("too few data")
    starts = [None, torch.zeros(4, 1, 7, 6, dtype=torch.float64), 5 * randn(4, 1, 7, 6, seed=3)]
    first, *others = (minimise(measurement, 0.1, 1e-5, start=start) for start in starts)
    assert all(torch.allclose(other, first, atol=1e-4) for other in others)


def test_penalty_does_not_matter() -> None:
    measurement, strength, found = problem("too few data"), 0.1, []
    for rho in (strength, 30 * strength):
        x = torch.zeros(4, 1, 7, 6, dtype=torch.float64)
        split = Split(differences(x, ALL_AXES), torch.zeros(3, *x.shape, dtype=torch.float64))
        for _ in range(300):
            x, split = admm_step(x, split, data_term(measurement), ALL_AXES, strength, rho, 5)
        found.append(x)
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[0], minimise(measurement, strength, 1e-5), atol=1e-4)


def test_without_strength_it_is_least_squares() -> None:
    measurement = problem("enough data")
    expected = measurement.operator.pseudo_inverse(measurement.y)
    start = torch.zeros_like(expected)
    found = minimise(measurement, 1e-6, 1e-7, most=500, start=start)
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(minimise(measurement, 1e-1, start=start), expected, atol=1e-2)


def test_more_strength_makes_a_smoother_volume_that_fits_worse() -> None:
    measurement = problem("too few data")
    volumes = [minimise(measurement, strength, 1e-4) for strength in (1e-3, 1e-2, 1e-1, 1)]
    for weaker, stronger in pairwise(volumes):
        assert total_variation(stronger) < 0.99 * total_variation(weaker)
        assert measurement.residual(stronger).norm() > 1.01 * measurement.residual(weaker).norm()


def test_tolerance_and_most_say_when_to_stop() -> None:
    def work(**given: float) -> int:
        measurement = problem("too few data")
        minimise(measurement, 0.03, **given)  # type: ignore[arg-type]
        return measurement.operator.calls  # type: ignore[return-value]

    assert 1.5 * work(tolerance=1e-1) < work(tolerance=1e-3) < work(tolerance=1e-5) / 1.5
    one, two, three = (work(tolerance=1e-5, most=most) for most in (1, 2, 3))
    assert three - two == two - one > 0
    with pytest.raises(InputError, match="0 iterations"):
        work(most=0)


@pytest.fixture(scope="module")
def ct() -> Measurement:
    """4 slices of 32 x 32 pixels, piecewise constant, from 8 angles with noise."""
    x = torch.zeros(4, 1, 32, 32)
    x[:, :, 8:24, 6:26] = 0.4
    x[1:, :, 12:18, 10:16] = 0.9
    x[:3, :, 18:22, 16:23] = 0.1
    operator = ParallelBeamCT((4, 32, 32), angles=8)
    y = simulate(x, operator, 5e-3, torch.Generator().manual_seed(0))
    return Measurement(y, operator, 5e-3, x)


def test_few_angles_are_enough_for_a_piecewise_constant_volume(ct: Measurement) -> None:
    quality = partial(summary, reference=ct.reference)
    fbp, tv = (quality(x)["psnr"] for x in (ct.operator.pseudo_inverse(ct.y), minimise(ct, 3e-3)))
    assert tv > fbp + 15


def test_converged_at_the_default_tolerance(ct: Measurement) -> None:
    default, long = (
        float(ct.residual(x).square().sum() / 2 + 3e-3 * total_variation(x))
        for x in (minimise(ct, 3e-3), minimise(ct, 3e-3, tolerance=1e-5))
    )
    assert long <= default < 1.01 * long
