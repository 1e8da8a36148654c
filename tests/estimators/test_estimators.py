"""The estimators against dense linear algebra and against each other."""

import inspect
from math import nan
from typing import Any

import pytest
import torch
from helpers import DenseOperator, Known, dense, images, measure, tweedies_mean
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS, DiffusionMBIR, Memory, PosteriorMean
from ddip_pl.physics import Measurement, ParallelBeamCT, simulate
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.solvers.admm import ALL_AXES, total_variation


def mbir_of(
    strength: float = 0.1, rho: float = 10.0, axes: Any = "slices", iterations: int = 5, cg_iterations: int = 5,
    discrepancy: float = 0.0,
) -> DiffusionMBIR:  # fmt: skip
    """Some settings, without a stop at noise level and without the prior's mean in the objective."""
    return DiffusionMBIR(strength, rho, axes, iterations, cg_iterations, discrepancy, gamma="infinite")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def defaults(estimator: type) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(estimator).parameters.items()}


def test_defaults_are_the_good_settings() -> None:
    assert defaults(DDS) == {"iterations": 30, "gamma": "noise", "spread": 2.0}
    assert defaults(DDNM) == {"iterations": 30, "tolerance": 1e-5}
    assert defaults(DiffusionMBIR) == {
        "strength": 0.03, "rho": 1.0, "axes": "slices", "iterations": 10, "cg_iterations": 3, "discrepancy": 1.0,
        "gamma": "noise", "spread": 2.0,
    }  # fmt: skip


def test_published_settings() -> None:
    assert (DDS.published().iterations, DDS.published().gamma) == (5, "infinite")
    assert (DDS.published(5.0).iterations, DDS.published(5.0).gamma) == (5, 5.0)
    mbir = DiffusionMBIR.published()
    assert (mbir.iterations, mbir.discrepancy, mbir.gamma) == (5, 0.0, "infinite")
    assert mbir.strength / mbir.rho == pytest.approx(0.01 / 0.5)
    assert 0.01 / 100 <= mbir.strength * 0.01 <= 0.01 / 60


# --- DDS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["infinite", 1e6])
def test_dds_is_exact_on_complete_noise_free_data(gamma: Any) -> None:
    operator, truth = dense(24), images(3)
    estimate, _ = DDS(60, gamma=gamma).condition(images(3, seed=7), measure(operator, truth), {}, 0.1)
    assert torch.allclose(estimate, truth, atol=1e-4)


def test_dds_keeps_the_prior_where_the_data_say_nothing() -> None:
    operator, truth, prior = dense(6), images(2), images(2, seed=7)
    estimate, _ = DDS(30, gamma="infinite").condition(prior, measure(operator, truth), {}, 0.1)
    correction = (estimate - prior).flatten(1)
    row_space = torch.linalg.pinv(operator.matrix) @ operator.matrix
    assert torch.allclose(operator(estimate), operator(truth), atol=1e-8)
    assert torch.allclose(correction @ row_space, correction, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_proximal_dds_solves_its_normal_equations(gamma: float) -> None:
    operator, truth, prior = dense(10), images(2), images(2, seed=7)
    measurement = measure(operator, truth)
    x, _ = DDS(16, gamma=gamma).condition(prior, measurement, {}, 0.1)
    left = x + gamma * operator.normal(x)
    assert torch.allclose(left, prior + gamma * operator.adjoint(measurement.y), atol=1e-9)


@pytest.mark.parametrize("estimator", [DDS(3, gamma="infinite"), DDS(3, gamma=5.0), DDNM(3), mbir_of()])
def test_estimator_starts_from_tweedies_mean_and_returns_the_noise(estimator: PosteriorMean) -> None:
    denoiser, x_t, measurement = Denoiser(Known()), images(2), measure(dense(6), images(2, 7))
    estimate = estimator(denoiser, x_t, 300, measurement)
    assert torch.equal(estimate.eps, 0.1 * x_t)
    mean, memory = estimator.condition(tweedies_mean(denoiser, x_t), measurement, {}, denoiser.sigma[300])
    assert torch.allclose(estimate.mean, mean, atol=1e-12)
    assert list(estimate.memory) == list(memory)


def test_estimator_passes_memory_on() -> None:
    given: list[Memory] = []

    class Counting(PosteriorMean):
        def condition(
            self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
        ) -> tuple[Tensor, Memory]:
            given.append(memory)
            return x0_hat, {"count": memory.get("count", torch.tensor(0)) + 1}

    denoiser, measurement = Denoiser(Known()), measure(dense(6), images(2))
    first = Counting()(denoiser, images(2), 300, measurement)
    second = Counting()(denoiser, images(2), 300, measurement, first.memory)
    assert given == [{}, {"count": torch.tensor(1)}]
    assert int(second.memory["count"]) == 2


def test_more_iterations_fit_sparse_view_data_better() -> None:
    operator = ParallelBeamCT((2, 24, 24), angles=8)
    truth = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    measurement = measure(operator, truth)
    start = torch.zeros_like(truth)
    means = [DDS(n, gamma="infinite").condition(start, measurement, {}, 0.1)[0] for n in (1, 3, 9)]
    residuals = [float(measurement.residual(mean).norm()) for mean in means]
    assert residuals[0] > 1.3 * residuals[1] > 1.3**2 * residuals[2]


@pytest.mark.parametrize("gamma", ["noise", "infinite", 5.0])
def test_dds_remembers_nothing_and_treats_every_slice_by_itself(gamma: Any) -> None:
    prior, other = images(3, 7), images(3, 7)
    other[0] += 1
    measurement = measure(dense(6), images(3))
    mean, memory = DDS(3, gamma=gamma).condition(prior, measurement, {"d": images(3)}, 0.1)
    assert memory == {}
    assert torch.equal(mean[1:], DDS(3, gamma=gamma).condition(other, measurement, {}, 0.1)[0][1:])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 24), sigma_y=st.floats(1e-3, 1), sigma_t=st.floats(1e-2, 10),
    spread=st.floats(0.5, 4),
)  # fmt: skip
def test_dds_is_the_mean_of_the_gaussian_posterior(
    seed: int, rows: int, sigma_y: float, sigma_t: float, spread: float
) -> None:
    """Conditioning the joint normal distribution of image and data, with dense covariances."""
    operator, prior = dense(rows, seed), images(3, seed)
    A, y = operator.matrix, operator(images(3, seed + 1))
    error = (spread * sigma_t) ** 2 * torch.eye(16, dtype=torch.float64)
    gain = error @ A.T @ torch.linalg.inv(A @ error @ A.T + sigma_y**2 * torch.eye(rows))
    expected = prior.flatten(1) + (y - operator(prior)) @ gain.T
    mean, _ = DDS(200, spread=spread).condition(prior, Measurement(y, operator, sigma_y), {}, sigma_t)
    assert torch.allclose(mean.flatten(1), expected, atol=1e-5)


def test_without_noise_dds_is_conjugate_gradients_on_the_data_alone() -> None:
    measurement = measure(dense(6), images(3), sigma_y=0.0)
    noise_free, alone = (
        dds.condition(images(3, 7), measurement, {}, 0.1)[0] for dds in (DDS(4), DDS(4, gamma="infinite"))
    )
    assert torch.equal(noise_free, alone)


def test_dds_has_the_right_gradient() -> None:
    operator = dense(12)
    measurement, dds = Measurement(operator(images(2)), operator, 0.02), DDS(10)
    assert torch.autograd.gradcheck(
        lambda x: dds.condition(x, measurement, {}, 0.1)[0], images(2, 7).requires_grad_(), atol=1e-4
    )


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"gamma": 0.0}, {"gamma": -1.0}, {"spread": 0.0}, {"gamma": nan}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DDS(**bad)


# --- all of them, with noise ----------------------------------------------------------------------------------


def squares(slices: int = 3) -> Tensor:
    x = torch.zeros(slices, 1, 32, 32)
    for i in range(slices):
        x[i, 0, 8 : 20 + i, 6 + i : 22] = 0.8
    return x


@pytest.mark.parametrize("estimator", [DDS(), DDNM()])
@pytest.mark.parametrize("sigma_y", [1e-3, 1e-2, 3e-2])
def test_noise_is_not_fitted(estimator: PosteriorMean, sigma_y: float) -> None:
    """The estimate is about as good as the prior's mean at least, and better than least squares."""
    truth = squares()
    operator = ParallelBeamCT((3, 32, 32), 24)
    measurement = Measurement(simulate(truth, operator, sigma_y, generator()), operator, sigma_y)
    prior = truth + 0.03 * torch.randn(truth.shape, generator=generator(1))
    mean, _ = estimator.condition(prior, measurement, {}, 0.03)
    fitted = operator.solve(operator.adjoint(measurement.y), 200)
    assert (mean - truth).norm() < min(1.1 * (prior - truth).norm(), (fitted - truth).norm())


# --- all of them, on complete data ----------------------------------------------------------------------------


def well_conditioned(seed: int, rows: int) -> DenseOperator:
    """Complete data: as many rows as pixels or more, singular values between 0.3 and 1."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, 16, dtype=torch.float64, generator=generator), full_matrices=False)
    values = 0.3 + 0.7 * torch.rand(16, dtype=torch.float64, generator=generator)
    return DenseOperator(u @ torch.diag(values / values.max()) @ v)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000), rows=st.integers(16, 30), slices=st.integers(2, 4),
    level=st.floats(-5, 5), spread=st.floats(0, 10),
)  # fmt: skip
@pytest.mark.parametrize(
    "estimator",
    [
        DDS(16, gamma="infinite"),
        DDS(16, gamma=1e9),
        DDNM(16, tolerance=1e-9),
        mbir_of(cg_iterations=16),
        mbir_of(axes="all", cg_iterations=16),
        mbir_of(iterations=20, cg_iterations=16, discrepancy=1.0),
    ],
    ids=["dds", "proximal dds", "ddnm", "mbir", "mbir along all axes", "mbir with discrepancy"],
)
def test_complete_noise_free_data_have_the_last_word(
    estimator: PosteriorMean, seed: int, rows: int, slices: int, level: float, spread: float
) -> None:
    """Whatever the prior's mean is, the estimate is the solution, and stays there. (For DPS see below.)"""
    operator, truth = well_conditioned(seed, rows), images(slices, seed)
    measurement, prior = measure(operator, truth, sigma_y=1e-10), level + spread * images(slices, seed + 1)
    mean, memory = estimator.condition(prior, measurement, {}, 0.1)
    assert torch.allclose(mean, truth, atol=1e-5)
    assert torch.allclose(estimator.condition(mean, measurement, memory, 0.1)[0], truth, atol=1e-5)


# --- DDNM -----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 14))
def test_ddnm_is_the_closed_form(seed: int, rows: int) -> None:
    """Range from the data, null space from the prior, with the pseudo-inverse of dense linear algebra."""
    operator, prior = dense(rows, seed), images(3, seed)
    measurement = measure(operator, images(3, seed + 1), sigma_y=0.0)
    inverse = torch.linalg.pinv(operator.matrix)
    expected = prior.flatten(1) + (measurement.y - operator(prior)) @ inverse.T
    mean, memory = DDNM(60, tolerance=1e-9).condition(prior, measurement, {"d": prior}, 0.1)
    assert torch.allclose(mean.flatten(1), expected, atol=1e-5)
    assert memory == {}


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_ddnm_stops_at_its_tolerance(tolerance: float) -> None:
    calls: list[int] = []

    class Counting(DenseOperator):
        def normal(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().normal(x)

    operator, prior = Counting(dense(12).matrix), images(3, 7)
    prior[1] *= 100  # the tolerance is relative for every slice
    measurement = measure(operator, images(3), sigma_y=0.0)

    def gradient(x: Tensor) -> Tensor:
        return operator.adjoint(measurement.residual(x)).flatten(1).norm(dim=1)

    mean, _ = DDNM(1000, tolerance).condition(prior, measurement, {}, 0.1)
    one_less, _ = DDNM(len(calls) - 1, tolerance).condition(prior, measurement, {}, 0.1)
    assert (gradient(mean) <= 1.001 * tolerance * gradient(prior)).all()
    assert (gradient(one_less) > tolerance * gradient(prior)).any()


def test_ddnm_needs_one_step_where_the_adjoint_is_the_pseudo_inverse() -> None:
    rows = torch.linalg.qr(dense(16).matrix)[0][:6]
    prior, measurement = images(2, 7), measure(DenseOperator(rows), images(2), sigma_y=0.0)
    expected = prior - (measurement.residual(prior) @ rows).view_as(prior)
    assert torch.allclose(DDNM(1).condition(prior, measurement, {}, 0.1)[0], expected, atol=1e-12)


def test_ddnm_on_sparse_view_data_comes_nearer_to_the_truth_again_and_again() -> None:
    """Filtered back-projection instead of the pseudo-inverse leads away from the solution."""
    operator = ParallelBeamCT((2, 24, 24), angles=8)
    truth = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    measurement = measure(operator, truth, sigma_y=0.0)
    x = fbp = torch.full_like(truth, 0.5)
    before = (x - truth).norm()
    for _ in range(5):
        x, _ = DDNM(100).condition(x, measurement, {}, 0.1)
        fbp = fbp - operator.pseudo_inverse(measurement.residual(fbp))
    assert (x - truth).norm() < 0.9 * before
    assert measurement.residual(x).norm() < 1e-3 * measurement.y.norm()
    assert measurement.residual(fbp).norm() > 10 * measurement.residual(x).norm()


def test_ddnm_has_the_right_gradient() -> None:
    measurement = measure(dense(6), images(2))
    ddnm = DDNM(20, tolerance=1e-6)
    assert torch.autograd.gradcheck(lambda x: ddnm.condition(x, measurement, {}, 0.1)[0], images(2, 7).requires_grad_())


@pytest.mark.parametrize("name", ["iterations", "tolerance"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_settings_of_ddnm_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^DDNM: {name} is {value}; give"):
        DDNM(**{name: value})  # type: ignore[arg-type]


# --- DiffusionMBIR --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_keeps_the_truth_that_fits_the_data(axes: Any) -> None:
    operator, truth = dense(10), images(3)
    measurement = measure(operator, truth)
    mean, memory = mbir_of(strength=1e-9, axes=axes).condition(truth, measurement, {}, 0.1)
    assert torch.allclose(mean, truth, atol=1e-5)
    for _ in range(5):
        mean, memory = mbir_of(strength=1e-9, axes=axes).condition(mean, measurement, memory, 0.1)
    assert torch.allclose(mean, truth, atol=1e-5)


@pytest.mark.parametrize("gamma", ["noise", 5.0])
def test_mbir_without_total_variation_is_dds(gamma: Any) -> None:
    measurement, prior = measure(dense(10), images(3), sigma_y=0.05), images(3, seed=7)
    expected, _ = DDS(60, gamma).condition(prior, measurement, {}, 0.1)
    mbir = DiffusionMBIR(1e-9, 1e-8, iterations=60, cg_iterations=30, discrepancy=0, gamma=gamma)
    assert torch.allclose(mbir.condition(prior, measurement, {}, 0.1)[0], expected, atol=1e-6)
    assert not torch.allclose(mbir_of(1e-9, 1e-8, iterations=60).condition(prior, measurement, {}, 0.1)[0], expected)


def test_mbir_comes_nearer_to_complete_data() -> None:
    operator, truth, prior = dense(24), images(3), images(3, seed=7)
    mean, _ = mbir_of(1e-6, 1e-4, iterations=20).condition(prior, measure(operator, truth), {}, 0.1)
    assert (mean - truth).norm() < 0.05 * (prior - truth).norm()


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_goes_on_where_it_stopped(axes: Any) -> None:
    measurement, prior = measure(dense(10), images(4)), images(4, seed=7)

    def mbir(iterations: int) -> DiffusionMBIR:
        return mbir_of(1e-2, 1e-1, axes, iterations)

    at_once, last = mbir(7).condition(prior, measurement, {}, 0.1)
    half, memory = mbir(3).condition(prior, measurement, {}, 0.1)
    with_memory, end = mbir(4).condition(half, measurement, memory, 0.1)
    without, _ = mbir(4).condition(half, measurement, {}, 0.1)
    assert torch.allclose(with_memory, at_once, atol=1e-12)
    assert all(torch.allclose(end[name], last[name], atol=1e-12) for name in last)
    assert (without - at_once).norm() > 1e-3 * at_once.norm()


def test_mbir_leaves_its_memory_alone() -> None:
    measurement, prior = measure(dense(10), images(4)), images(4, seed=7)
    _, memory = mbir_of().condition(prior, measurement, {}, 0.1)
    before = {name: value.clone() for name, value in memory.items()}
    mbir_of().condition(prior, measurement, memory, 0.1)
    assert all(torch.equal(memory[name], value) for name, value in before.items())


def test_mbir_with_memory_converges_to_total_variation() -> None:
    """Applied to its own result repeatedly, it is ADMM with many iterations and forgets the prior's mean."""
    strength, measurement = 1e-2, measure(dense(10), images(4))

    def objective(x: Tensor) -> float:
        return float(measurement.residual(x).square().sum() / 2 + strength * total_variation(x, ALL_AXES))

    mbir, memory, objectives = mbir_of(strength, 10 * strength, "all"), Memory(), []
    x = images(4, seed=7)
    for _ in range(60):
        x, memory = mbir.condition(x, measurement, memory, 0.1)
        objectives.append(objective(x))
    expected = objective(tv_reconstruction(measurement, strength, tolerance=1e-5))
    assert objectives[-1] == pytest.approx(expected, rel=1e-4)
    assert objectives[0] > 1.01 * expected


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_couples_neighbouring_slices(axes: Any) -> None:
    prior, other = images(3, 7), images(3, 7)
    other[0] += 1
    measurement = measure(dense(6), images(3))
    mbir = mbir_of(1e-2, 1e-1, axes)
    mean, changed = (mbir.condition(x, measurement, {}, 0.1)[0] for x in (prior, other))
    assert (mean[1] - changed[1]).norm() > 1e-2 * mean[1].norm()


def test_mbir_smooths_inside_slices_along_all_axes_only() -> None:
    """Identical slices that fit the data: nothing to do across slices, much within them."""
    truth = images(1).expand(3, -1, -1, -1)
    measurement = measure(dense(6), truth)
    across, everywhere = (
        mbir_of(1e-2, 1e-1, axes).condition(truth, measurement, {}, 0.1)[0]
        for axes in ("slices", "all")  # type: ignore[arg-type]
    )
    assert torch.allclose(across, truth, atol=1e-9)
    assert total_variation(everywhere, (2, 3)) < 0.9 * total_variation(truth, (2, 3))


def test_mbir_smooths_more_with_more_strength() -> None:
    measurement, prior = measure(dense(6), images(4)), images(4, 7)
    variation = [
        float(total_variation(mbir_of(s, 1e-1, iterations=20).condition(prior, measurement, {}, 0.1)[0], (0,)))
        for s in (1e-4, 1e-3, 1e-2)
    ]
    assert variation[0] > 1.1 * variation[1] > 1.1**2 * variation[2]


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_has_the_right_gradient(axes: Any) -> None:
    """The adaptation loss passes through it, including differences that are zero, as in the last slice."""
    measurement, prior = measure(dense(10), images(3)), images(3, 7)
    prior[0, :, :2] = prior[1, :, :2]
    mbir = mbir_of(1e-2, 1e-1, axes, iterations=2, cg_iterations=3)
    assert torch.autograd.gradcheck(lambda x: mbir.condition(x, measurement, {}, 0.1)[0], prior.requires_grad_())


def test_mbir_refuses_a_single_slice() -> None:
    with pytest.raises(InputError, match=r"but was given one; .*data\.slices.*adaptation\.slices"):
        mbir_of().condition(images(1), measure(dense(6), images(1)), {}, 0.1)


@pytest.mark.parametrize("name", ["strength", "rho", "iterations", "cg_iterations"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_settings_of_mbir_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^DiffusionMBIR: {name} is {value}; give"):
        DiffusionMBIR(**{name: value})  # type: ignore[arg-type]


def test_mbir_refuses_unknown_axes() -> None:
    with pytest.raises(InputError, match=r"^DiffusionMBIR: axes is 'z'; give slices or all$"):
        DiffusionMBIR(axes="z")  # type: ignore[arg-type]


def test_mbir_ends_where_the_residual_is_that_of_noise() -> None:
    operator, truth, prior = well_conditioned(0, 20), images(3), images(3, 8)
    noise = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = Measurement(operator(truth) + 0.01 * noise, operator, 0.01)
    expected = 0.01 * noisy.y.numel() ** 0.5
    stopped = mbir_of(iterations=50, cg_iterations=1, discrepancy=3.0).condition(prior, noisy, {}, 0.1)[0]
    on = mbir_of(iterations=50, cg_iterations=1).condition(prior, noisy, {}, 0.1)[0]
    assert noisy.residual(on).norm() < noisy.residual(stopped).norm() <= 3 * expected < noisy.residual(prior).norm()


def test_mbir_needs_a_noise_level() -> None:
    with pytest.raises(InputError, match=r"data\.sigma_y is 0"):
        mbir_of().condition(images(3), measure(dense(6), images(3), sigma_y=0.0), {}, 0.1)
