"""Conjugate gradients and the estimators against dense linear algebra and against each other."""

from typing import Any

import pytest
import torch
from helpers import make_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS, DPS, DiffusionMBIR, Memory, PosteriorMean
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT
from ddip_pl.prior.denoiser import COLUMNS, ROWS, SLICES, Denoiser, Plane
from ddip_pl.prior.schedule import ddim_step
from ddip_pl.solvers.admm import ALL_AXES, total_variation
from ddip_pl.solvers.cg import conjugate_gradient


class DenseOperator(LinearOperator):
    """A matrix on images of 4 x 4 pixels, for which everything has a closed form."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).view(-1, 1, 4, 4)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.matrix).T).view(-1, 1, 4, 4)


def dense(rows: int, seed: int = 0) -> DenseOperator:
    matrix = torch.randn(rows, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return DenseOperator(matrix / torch.linalg.matrix_norm(matrix, 2))


def measure(operator: LinearOperator, x: Tensor, sigma_y: float = 1.0) -> Measurement:
    """Without noise; `sigma_y` is the unit of strengths."""
    return Measurement(operator(x), operator, sigma_y, "test")


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), slices=st.integers(1, 4))
def test_cg_solves_as_the_dense_solver_does(seed: int, slices: int) -> None:
    operator = dense(24, seed)
    matrix = torch.eye(16, dtype=torch.float64) + 5 * operator.matrix.T @ operator.matrix
    b = images(slices, seed + 1)
    x = conjugate_gradient(lambda d: d + 5 * operator.normal(d), b, 16)
    expected = torch.linalg.solve(matrix, b.flatten(1).T).T
    assert torch.allclose(x.flatten(1), expected, rtol=1e-8, atol=1e-10)


def test_cg_treats_every_slice_by_itself() -> None:
    operator, b = dense(12), images(3)
    b[1] *= 1000  # a common inner product would let this slice dominate the others
    together = conjugate_gradient(operator.normal, b, 3)
    apart = torch.cat([conjugate_gradient(operator.normal, image[None], 3) for image in b])
    assert torch.allclose(together, apart, rtol=1e-10)


def test_cg_leaves_a_solved_slice_alone_and_stays_finite() -> None:
    b = images(2)
    b[0] = 0
    b.requires_grad_()
    x = conjugate_gradient(lambda d: 2 * d, b, 5)  # solved after the first step
    assert torch.equal(x[0], torch.zeros_like(x[0]))
    assert torch.allclose(x[1], b[1] / 2)
    x.square().sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_cg_has_the_right_gradient() -> None:
    operator = dense(12)
    b = images(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: conjugate_gradient(operator.normal, b, 3), b)


@pytest.mark.parametrize("gamma", [None, 1e6])
def test_dds_is_exact_on_complete_noise_free_data(gamma: float | None) -> None:
    operator, truth = dense(24), images(3)
    estimate, _ = DDS(60, gamma).condition(images(3, seed=7), measure(operator, truth), {})
    assert torch.allclose(estimate, truth, atol=1e-4)


def test_dds_keeps_the_prior_where_the_data_say_nothing() -> None:
    operator, truth, prior = dense(6), images(2), images(2, seed=7)
    estimate, _ = DDS(30).condition(prior, measure(operator, truth), {})
    correction = (estimate - prior).flatten(1)
    row_space = torch.linalg.pinv(operator.matrix) @ operator.matrix
    assert torch.allclose(operator(estimate), operator(truth), atol=1e-8)
    assert torch.allclose(correction @ row_space, correction, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_proximal_dds_solves_its_normal_equations(gamma: float) -> None:
    operator, truth, prior = dense(10), images(2), images(2, seed=7)
    measurement = measure(operator, truth)
    x, _ = DDS(16, gamma).condition(prior, measurement, {})
    left = x + gamma * operator.normal(x)
    assert torch.allclose(left, prior + gamma * operator.adjoint(measurement.y), atol=1e-9)


class Known(nn.Module):
    """A network whose noise is a tenth of what it sees."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.tolist() == [300] * len(x)
        return torch.cat([0.1 * x, x], dim=1)  # a second channel of variances, to be ignored


def tweedies_mean(denoiser: Denoiser, x_t: Tensor) -> Tensor:
    abar = denoiser.abar[300]
    return (x_t - (1 - abar).sqrt() * 0.1 * x_t) / abar.sqrt()


@pytest.mark.parametrize("estimator", [DDS(3), DDS(3, 5.0), DDNM(3), DiffusionMBIR()])
def test_estimator_starts_from_tweedies_mean_and_returns_the_noise(estimator: PosteriorMean) -> None:
    denoiser, x_t, measurement = Denoiser(Known()), images(2), measure(dense(6), images(2, 7))
    estimate = estimator(denoiser, x_t, 300, measurement)
    assert torch.equal(estimate.eps, 0.1 * x_t)
    mean, memory = estimator.condition(tweedies_mean(denoiser, x_t), measurement, {})
    assert torch.allclose(estimate.mean, mean, atol=1e-12)
    assert list(estimate.memory) == list(memory)


def test_estimator_passes_memory_on() -> None:
    given: list[Memory] = []

    class Counting(PosteriorMean):
        def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
            given.append(memory)
            return x0_hat, {"count": memory.get("count", torch.tensor(0)) + 1}

    denoiser, measurement = Denoiser(Known()), measure(dense(6), images(2))
    first = Counting()(denoiser, images(2), 300, measurement)
    second = Counting()(denoiser, images(2), 300, measurement, first.memory)
    assert given == [{}, {"count": torch.tensor(1)}]
    assert int(second.memory["count"]) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_denoiser_takes_a_batch_at_a_time(batch_size: int) -> None:
    sizes: list[int] = []

    class Spy(Known):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x, t) * (1 + x.mean((1, 2, 3), keepdim=True))  # slices differ from each other

    x_t = images(5)
    x0_hat, eps = Denoiser(Spy(), batch_size)(x_t, 300)
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 5: [5], 8: [5]}[batch_size]
    assert torch.allclose(eps, 0.1 * x_t * (1 + x_t.mean((1, 2, 3), keepdim=True)))
    abar = Denoiser(Spy()).abar[300]
    assert torch.allclose(abar.sqrt() * x0_hat + (1 - abar).sqrt() * eps, x_t)


def test_denoiser_sees_the_planes_it_is_told_to() -> None:
    class RowGradient(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.arange(x.shape[2])[:, None] + 100 * torch.arange(x.shape[3])

    denoiser, x_t = Denoiser(RowGradient(), batch_size=2), torch.ones(3, 1, 4, 5)
    slices, rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    expected = {SLICES: rows + 100 * columns, ROWS: slices + 100 * columns, COLUMNS: rows + 100 * slices}
    for plane, eps in expected.items():
        with denoiser.across(plane):
            assert torch.equal(denoiser(x_t, 300)[1], eps[:, None].float())
    assert torch.equal(denoiser(x_t, 300)[1], expected[SLICES][:, None].float())


def test_more_iterations_fit_sparse_view_data_better() -> None:
    operator = ParallelBeamCT(24, angles=8)
    truth = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    measurement = measure(operator, truth)
    residuals = [
        float(measurement.residual(DDS(n).condition(torch.zeros_like(truth), measurement, {})[0]).norm())
        for n in (1, 3, 9)
    ]
    assert residuals[0] > 1.3 * residuals[1] > 1.3**2 * residuals[2]


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_dds_remembers_nothing_and_treats_every_slice_by_itself(gamma: float | None) -> None:
    prior, other = images(3, 7), images(3, 7)
    other[0] += 1
    measurement = measure(dense(6), images(3))
    mean, memory = DDS(3, gamma).condition(prior, measurement, {"d": images(3)})
    assert memory == {}
    assert torch.equal(mean[1:], DDS(3, gamma).condition(other, measurement, {})[0][1:])


@pytest.mark.parametrize("iterations", [30, 2])
def test_discrepancy_leaves_a_slice_alone_when_its_residual_is_that_of_the_noise(iterations: int) -> None:
    operator, truth, prior = dense(12), images(3), images(3, 7)
    prior[0] = truth[0] + 1e-3 * prior[0]  # fits better than the noise would let it
    measurement = Measurement(operator(truth), operator, 0.02, "test")
    expected = 1.5 * 0.02 * 12**0.5
    before = measurement.residual(prior).norm(dim=1)
    mean, _ = DDS(iterations, discrepancy=1.5).condition(prior, measurement, {})
    after = measurement.residual(mean).norm(dim=1)
    assert before[0] < expected < before[1:].min()
    assert torch.equal(mean[0], prior[0])
    full, _ = DDS(iterations).condition(prior, measurement, {})
    reached = measurement.residual(full).norm(dim=1)[1:] < expected
    assert reached.all() == (iterations == 30)
    assert torch.allclose(after[1:][reached], torch.full_like(after[1:][reached], expected), rtol=1e-8)
    assert torch.allclose(mean[1:][~reached], full[1:][~reached], atol=1e-12)


def test_discrepancy_has_the_right_gradient() -> None:
    operator = dense(12)
    measurement = Measurement(operator(images(2)), operator, 0.02, "test")
    dds = DDS(10, discrepancy=1.0)
    assert torch.autograd.gradcheck(
        lambda x: dds.condition(x, measurement, {})[0], images(2, 7).requires_grad_(), atol=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [{"iterations": 0}, {"gamma": 0.0}, {"gamma": -1.0}, {"discrepancy": -1.0}, {"discrepancy": 1.0, "gamma": 5.0}],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DDS(**settings)  # type: ignore[arg-type]


# --- all of them, on complete data ----------------------------------------------------------------------------


def well_conditioned(seed: int, rows: int) -> DenseOperator:
    """Complete data: as many rows as pixels or more, singular values between 0.3 and 1."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, 16, dtype=torch.float64, generator=generator), full_matrices=False)
    values = 0.3 + 0.7 * torch.rand(16, dtype=torch.float64, generator=generator)
    return DenseOperator(u @ torch.diag(values / values.max()) @ v)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000), rows=st.integers(16, 30), slices=st.integers(2, 4),
    level=st.floats(-5, 5), spread=st.floats(0, 10),
)  # fmt: skip
@pytest.mark.parametrize(
    "estimator",
    [
        DDS(16),
        DDS(16, gamma=1e9),
        DDS(16, discrepancy=1.0),
        DDNM(16, tolerance=1e-9),
        DiffusionMBIR(cg_iterations=16),
        DiffusionMBIR(axes="all", cg_iterations=16),
        DiffusionMBIR(iterations=20, cg_iterations=16, discrepancy=1.0),
    ],
    ids=["dds", "proximal dds", "dds with discrepancy", "ddnm", "mbir", "mbir along all axes", "mbir with discrepancy"],
)
def test_complete_noise_free_data_have_the_last_word(
    estimator: PosteriorMean, seed: int, rows: int, slices: int, level: float, spread: float
) -> None:
    """Whatever the prior's mean is, the estimate is the solution, and stays there. (For DPS see below.)"""
    operator, truth = well_conditioned(seed, rows), images(slices, seed)
    measurement, prior = measure(operator, truth, sigma_y=1e-10), level + spread * images(slices, seed + 1)
    mean, memory = estimator.condition(prior, measurement, {})
    assert torch.allclose(mean, truth, atol=1e-5)
    assert torch.allclose(estimator.condition(mean, measurement, memory)[0], truth, atol=1e-5)


# --- DDNM -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 14))
def test_ddnm_is_the_closed_form(seed: int, rows: int) -> None:
    """Range from the data, null space from the prior, with the pseudo-inverse of dense linear algebra."""
    operator, prior = dense(rows, seed), images(3, seed)
    measurement = measure(operator, images(3, seed + 1))
    inverse = torch.linalg.pinv(operator.matrix)
    expected = prior.flatten(1) + (measurement.y - operator(prior)) @ inverse.T
    mean, memory = DDNM(60, tolerance=1e-9).condition(prior, measurement, {"d": prior})
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
    prior[1] *= 100  # what is reached is measured for every slice against itself
    measurement = measure(operator, images(3))

    def gradient(x: Tensor) -> Tensor:
        return operator.adjoint(measurement.residual(x)).flatten(1).norm(dim=1)

    mean, _ = DDNM(1000, tolerance).condition(prior, measurement, {})
    one_less, _ = DDNM(len(calls) - 1, tolerance).condition(prior, measurement, {})
    assert (gradient(mean) <= 1.001 * tolerance * gradient(prior)).all()
    assert (gradient(one_less) > tolerance * gradient(prior)).any()


def test_ddnm_needs_one_step_where_the_adjoint_is_the_pseudo_inverse() -> None:
    rows = torch.linalg.qr(dense(16).matrix)[0][:6]
    prior, measurement = images(2, 7), measure(DenseOperator(rows), images(2))
    expected = prior - (measurement.residual(prior) @ rows).view_as(prior)
    assert torch.allclose(DDNM(1).condition(prior, measurement, {})[0], expected, atol=1e-12)


def test_ddnm_on_sparse_view_data_comes_nearer_to_the_truth_again_and_again() -> None:
    """Filtered back-projection in place of the pseudo-inverse leads away from it."""
    operator = ParallelBeamCT(24, angles=8)
    truth = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    measurement = measure(operator, truth)
    x = fbp = torch.full_like(truth, 0.5)
    before = (x - truth).norm()
    for _ in range(5):
        x, _ = DDNM().condition(x, measurement, {})
        fbp = fbp - operator.pseudo_inverse(measurement.residual(fbp))
    assert (x - truth).norm() < 0.9 * before
    assert measurement.residual(x).norm() < 1e-3 * measurement.y.norm()
    assert measurement.residual(fbp).norm() > 10 * measurement.residual(x).norm()


def test_ddnm_has_the_right_gradient() -> None:
    measurement = measure(dense(6), images(2))
    ddnm = DDNM(20, tolerance=1e-6)
    assert torch.autograd.gradcheck(lambda x: ddnm.condition(x, measurement, {})[0], images(2, 7).requires_grad_())


@pytest.mark.parametrize("name", ["iterations", "tolerance"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_settings_of_ddnm_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name} of DDNM is {value}; give"):
        DDNM(**{name: value})  # type: ignore[arg-type]


# --- DPS ------------------------------------------------------------------------------------------------------


class Curved(nn.Module):
    """A network that is not linear and mixes the pixels of a slice; one weight of it may be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (
            self.weight.view(-1, 1, 1, 1) * x + x.mean((2, 3), keepdim=True) * x.roll(1, 2) + t.view(-1, 1, 1, 1) / 1000
        ).sin()


def misfit(denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement) -> Tensor:
    """`|| y - A x0_hat(x_t) ||` of every slice."""
    return measurement.residual(denoiser(x_t, t)[0]).norm(dim=1)


@pytest.mark.parametrize("t", [0, 1, 300, 999])
def test_dps_steps_down_the_gradient_of_the_misfit(t: int) -> None:
    denoiser, x_t, measurement = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7))
    with torch.no_grad():
        estimate = DPS(0.7)(denoiser, x_t, t, measurement)
        x0_hat, eps = denoiser(x_t, t)
        numerical = torch.zeros_like(x_t)
        for pixel in range(16):
            h = torch.zeros(16, dtype=x_t.dtype)
            h[pixel] = 1e-5
            ahead, behind = (misfit(denoiser, x_t + s * h.view(1, 4, 4), t, measurement) for s in (1, -1))
            numerical.view(3, 16)[:, pixel] = (ahead - behind) / 2e-5
    abar = 1.0 if t == 0 else float(denoiser.abar[t - 1])
    assert torch.allclose(estimate.mean, x0_hat - 0.7 / abar**0.5 * numerical, rtol=1e-4, atol=1e-6)
    assert torch.equal(estimate.eps, eps)
    assert estimate.memory == {}


def test_dps_is_the_published_step_behind_the_samplers() -> None:
    """`x_{t-1} = x'_{t-1} - step grad` (Algorithm 1), with the gradient as autograd has it."""
    denoiser, x_t, measurement, noise = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7)), images(3, 8)
    (gradient,) = torch.autograd.grad(misfit(denoiser, x := x_t.clone().requires_grad_(), 300, measurement).sum(), x)
    x0_hat, eps = denoiser(x_t, 300)
    published = ddim_step(x0_hat, eps, noise, denoiser.abar[299], 0.85) - 0.7 * gradient
    ours = DPS(0.7)(denoiser, x_t, 300, measurement)
    assert torch.allclose(ddim_step(ours.mean, ours.eps, noise, denoiser.abar[299], 0.85), published, atol=1e-7)


@pytest.mark.parametrize("plane", [SLICES, ROWS, COLUMNS])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_dps_does_not_depend_on_the_batches(batch_size: int, plane: Plane) -> None:
    sizes: list[int] = []

    class Spy(Curved):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x, t)

    x_t, measurement = images(5), measure(dense(6), images(5, 7))
    x_t[1] *= 10
    means = []
    for size in (batch_size, 100):
        denoiser = Denoiser(Spy(), size)
        with denoiser.across(plane):
            means.append(DPS()(denoiser, x_t, 300, measurement).mean)
        assert max(sizes) == min(size, 5 if plane == SLICES else 4)
        sizes.clear()
    assert torch.allclose(means[0], means[1], atol=1e-12)


def test_dps_treats_every_slice_by_itself() -> None:
    denoiser, x_t, measurement = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7))
    together = DPS()(denoiser, x_t, 300, measurement).mean
    apart = torch.cat([DPS()(denoiser, x_t[i : i + 1], 300, measurement[i : i + 1]).mean for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-12)


def test_dps_takes_weights_of_each_slice() -> None:
    x_t, measurement = images(3), measure(dense(6), images(3, 7))
    weights = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    denoiser = Denoiser(Curved(), batch_size=2)
    denoiser.slicewise, denoiser.weights = True, {"weight": weights}
    together, apart = DPS()(denoiser, x_t, 300, measurement).mean, []
    for i in range(3):
        alone = Denoiser(Curved())
        alone.weights = {"weight": weights[i]}
        apart.append(DPS()(alone, x_t[i : i + 1], 300, measurement[i : i + 1]).mean)
    assert torch.allclose(together, torch.cat(apart), atol=1e-12)


def test_dps_leaves_alone_what_fits_exactly() -> None:
    denoiser, x_t, operator = Denoiser(Curved()), images(3), dense(24)
    x0_hat, _ = denoiser(x_t, 300)
    truth = x0_hat.detach().clone()
    truth[1] += images(1, 9)[0]  # two of three slices fit
    mean = DPS()(denoiser, x_t, 300, measure(operator, truth)).mean
    assert torch.equal(mean[[0, 2]], x0_hat[[0, 2]])
    assert (mean[1] - x0_hat[1]).norm() > 0.1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), level=st.floats(-5, 5), size=st.integers(1, 3))
def test_one_step_of_dps_with_the_right_length_solves_complete_data(seed: int, level: float, size: int) -> None:
    """`x0_hat = c x_t` and `A` a rotation: the gradient is `c` long and points from the solution to `x0_hat`."""
    rotation = DenseOperator(torch.linalg.qr(dense(16, seed).matrix)[0])
    denoiser, x_t, truth = Denoiser(Known(), size), level + images(1, seed), images(1, seed + 1)
    x0_hat = tweedies_mean(denoiser, x_t)
    c = float(tweedies_mean(denoiser, torch.ones(())))
    length = float((x0_hat - truth).norm()) * float(denoiser.abar[299].sqrt()) / c
    assert torch.allclose(DPS(length)(denoiser, x_t, 300, measure(rotation, truth)).mean, truth, atol=1e-5)


def test_adaptation_differentiates_dps() -> None:
    """The gradient of a loss in the weights, through the gradient through the network."""
    network = Curved()
    x_t, measurement = images(3), measure(dense(6), images(3, 7))

    def loss(weight: Tensor) -> Tensor:
        denoiser = Denoiser(network, batch_size=2)
        denoiser.weights = {"weight": weight}
        return measurement.residual(DPS()(denoiser, x_t, 300, measurement).mean).square().sum()

    assert torch.autograd.gradcheck(loss, network.weight)
    with torch.no_grad():
        assert not loss(network.weight).requires_grad


def test_dps_goes_through_the_unet_as_autograd_does() -> None:
    denoiser = Denoiser(make_network(num_channels=32), batch_size=2).requires_grad_(False)
    operator = ParallelBeamCT(32, angles=8)
    x_t, truth = (torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    measurement = measure(operator, truth)
    with torch.no_grad():
        estimate = DPS(5.0)(denoiser, x_t, 300, measurement)
    x = x_t.clone().requires_grad_()
    x0_hat = denoiser(x, 300)[0]
    (gradient,) = torch.autograd.grad(measurement.residual(x0_hat).flatten(1).norm(dim=1).sum(), x)
    expected = x0_hat.detach() - 5 / denoiser.abar[299].sqrt() * gradient
    assert (expected - x0_hat).norm() > 0.1
    assert torch.allclose(estimate.mean, expected, atol=1e-4)
    assert not estimate.mean.requires_grad


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_bad_steps_of_dps_are_refused(step: float) -> None:
    with pytest.raises(InputError, match=rf"^step of DPS is {step}; give"):
        DPS(step)


# --- DiffusionMBIR --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_keeps_the_truth_that_fits_the_data(axes: Any) -> None:
    operator, truth = dense(10), images(3)
    measurement = measure(operator, truth)
    mean, memory = DiffusionMBIR(strength=1e-9, axes=axes).condition(truth, measurement, {})
    assert torch.allclose(mean, truth, atol=1e-5)
    for _ in range(5):
        mean, memory = DiffusionMBIR(strength=1e-9, axes=axes).condition(mean, measurement, memory)
    assert torch.allclose(mean, truth, atol=1e-5)


def test_mbir_comes_nearer_to_complete_data() -> None:
    operator, truth, prior = dense(24), images(3), images(3, seed=7)
    mean, _ = DiffusionMBIR(1e-6, 1e-4, iterations=20).condition(prior, measure(operator, truth), {})
    assert (mean - truth).norm() < 0.05 * (prior - truth).norm()


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_goes_on_where_it_stopped(axes: Any) -> None:
    measurement, prior = measure(dense(10), images(4)), images(4, seed=7)

    def mbir(iterations: int) -> DiffusionMBIR:
        return DiffusionMBIR(1e-2, 1e-1, axes, iterations)

    at_once, last = mbir(7).condition(prior, measurement, {})
    half, memory = mbir(3).condition(prior, measurement, {})
    with_memory, end = mbir(4).condition(half, measurement, memory)
    without, _ = mbir(4).condition(half, measurement, {})
    assert torch.allclose(with_memory, at_once, atol=1e-12)
    assert all(torch.allclose(end[name], last[name], atol=1e-12) for name in last)
    assert (without - at_once).norm() > 1e-3 * at_once.norm()


def test_mbir_leaves_its_memory_alone() -> None:
    measurement, prior = measure(dense(10), images(4)), images(4, seed=7)
    _, memory = DiffusionMBIR().condition(prior, measurement, {})
    before = {name: value.clone() for name, value in memory.items()}
    DiffusionMBIR().condition(prior, measurement, memory)
    assert all(torch.equal(memory[name], value) for name, value in before.items())


def test_mbir_with_memory_converges_to_total_variation() -> None:
    """From its own result again and again it is ADMM run for long, and the prior's mean is forgotten."""
    strength, measurement = 1e-2, measure(dense(10), images(4))

    def objective(x: Tensor) -> float:
        return float(measurement.residual(x).square().sum() / 2 + strength * total_variation(x, ALL_AXES))

    mbir, memory, objectives = DiffusionMBIR(strength, 10 * strength, "all"), Memory(), []
    x = images(4, seed=7)
    for _ in range(60):
        x, memory = mbir.condition(x, measurement, memory)
        objectives.append(objective(x))
    expected = objective(tv_reconstruction(measurement, strength, tolerance=1e-5))
    assert objectives[-1] == pytest.approx(expected, rel=1e-4)
    assert objectives[0] > 1.01 * expected


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_couples_neighbouring_slices(axes: Any) -> None:
    prior, other = images(3, 7), images(3, 7)
    other[0] += 1
    measurement = measure(dense(6), images(3))
    mbir = DiffusionMBIR(1e-2, 1e-1, axes)
    mean, changed = (mbir.condition(x, measurement, {})[0] for x in (prior, other))
    assert (mean[1] - changed[1]).norm() > 1e-2 * mean[1].norm()


def test_mbir_smooths_inside_slices_along_all_axes_only() -> None:
    """Slices that are all alike and fit the data: nothing to do across them, much inside them."""
    truth = images(1).expand(3, -1, -1, -1)
    measurement = measure(dense(6), truth)
    across, everywhere = (
        DiffusionMBIR(1e-2, 1e-1, axes).condition(truth, measurement, {})[0]
        for axes in ("slices", "all")  # type: ignore[arg-type]
    )
    assert torch.allclose(across, truth, atol=1e-9)
    assert total_variation(everywhere, (2, 3)) < 0.9 * total_variation(truth, (2, 3))


def test_mbir_smooths_more_with_more_strength() -> None:
    measurement, prior = measure(dense(6), images(4)), images(4, 7)
    variation = [
        float(total_variation(DiffusionMBIR(s, 1e-1, iterations=20).condition(prior, measurement, {})[0], (0,)))
        for s in (1e-4, 1e-3, 1e-2)
    ]
    assert variation[0] > 1.1 * variation[1] > 1.1**2 * variation[2]


@pytest.mark.parametrize("axes", ["slices", "all"])
def test_mbir_has_the_right_gradient(axes: Any) -> None:
    """The adaptation loss goes through it, and through differences that are zero, as the last slice's always are."""
    measurement, prior = measure(dense(10), images(3)), images(3, 7)
    prior[0, :, :2] = prior[1, :, :2]
    mbir = DiffusionMBIR(1e-2, 1e-1, axes, iterations=2, cg_iterations=3)
    assert torch.autograd.gradcheck(lambda x: mbir.condition(x, measurement, {})[0], prior.requires_grad_())


def test_mbir_refuses_a_single_slice() -> None:
    with pytest.raises(InputError, match=r"was given one; .*data\.slices.*adaptation\.slices"):
        DiffusionMBIR().condition(images(1), measure(dense(6), images(1)), {})


@pytest.mark.parametrize("name", ["strength", "rho", "iterations", "cg_iterations"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_settings_of_mbir_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name} of DiffusionMBIR is {value}; give"):
        DiffusionMBIR(**{name: value})  # type: ignore[arg-type]


def test_mbir_refuses_unknown_axes() -> None:
    with pytest.raises(InputError, match=r"^axes of DiffusionMBIR is 'z'; give 'slices' or 'all'$"):
        DiffusionMBIR(axes="z")  # type: ignore[arg-type]


def test_mbir_ends_where_the_residual_is_that_of_noise() -> None:
    operator, truth, prior = well_conditioned(0, 20), images(3), images(3, 8)
    noise = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = Measurement(operator(truth) + 0.01 * noise, operator, 0.01, "noisy")
    expected = 0.01 * noisy.y.numel() ** 0.5
    stopped = DiffusionMBIR(iterations=50, cg_iterations=1, discrepancy=3.0).condition(prior, noisy, {})[0]
    on = DiffusionMBIR(iterations=50, cg_iterations=1).condition(prior, noisy, {})[0]
    assert noisy.residual(on).norm() < noisy.residual(stopped).norm() <= 3 * expected < noisy.residual(prior).norm()


def test_mbir_needs_a_noise_level() -> None:
    with pytest.raises(InputError, match=r"data\.sigma_y is 0"):
        DiffusionMBIR().condition(images(3), measure(dense(6), images(3), sigma_y=0.0), {})
