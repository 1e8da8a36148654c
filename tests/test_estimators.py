"""Conjugate gradients and DDS against dense linear algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.estimators.cg import conjugate_gradient
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT
from ddip_pl.prior.denoiser import Denoiser


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


def measure(operator: LinearOperator, x: Tensor) -> Measurement:
    return Measurement(operator(x), operator, 0.0, "test")


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
    estimate = DDS(60, gamma).condition(images(3, seed=7), measure(operator, truth))
    assert torch.allclose(estimate, truth, atol=1e-4)


def test_dds_keeps_the_prior_where_the_data_say_nothing() -> None:
    operator, truth, prior = dense(6), images(2), images(2, seed=7)
    estimate = DDS(30).condition(prior, measure(operator, truth))
    correction = (estimate - prior).flatten(1)
    row_space = torch.linalg.pinv(operator.matrix) @ operator.matrix
    assert torch.allclose(operator(estimate), operator(truth), atol=1e-8)
    assert torch.allclose(correction @ row_space, correction, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_proximal_dds_solves_its_normal_equations(gamma: float) -> None:
    operator, truth, prior = dense(10), images(2), images(2, seed=7)
    measurement = measure(operator, truth)
    x = DDS(16, gamma).condition(prior, measurement)
    left = x + gamma * operator.normal(x)
    assert torch.allclose(left, prior + gamma * operator.adjoint(measurement.y), atol=1e-9)


def test_estimator_starts_from_tweedies_mean_and_returns_the_noise() -> None:
    class Known(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert t.tolist() == [300] * len(x)
            return torch.cat([0.1 * x, x], dim=1)  # a second channel of variances, to be ignored

    operator = dense(6)
    denoiser, x_t = Denoiser(Known()), images(2)
    mean, eps = DDS(3)(denoiser, x_t, 300, measure(operator, images(2, 7)))
    abar = denoiser.abar[300]
    x0_hat = (x_t - (1 - abar).sqrt() * 0.1 * x_t) / abar.sqrt()
    assert torch.equal(eps, 0.1 * x_t)
    assert torch.allclose(mean, DDS(3).condition(x0_hat, measure(operator, images(2, 7))), atol=1e-12)


def test_more_iterations_fit_sparse_view_data_better() -> None:
    operator = ParallelBeamCT(24, angles=8)
    truth = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    measurement = measure(operator, truth)
    residuals = [
        float(measurement.residual(DDS(n).condition(torch.zeros_like(truth), measurement)).norm()) for n in (1, 3, 9)
    ]
    assert residuals[0] > 1.3 * residuals[1] > 1.3**2 * residuals[2]


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"gamma": 0.0}, {"gamma": -1.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DDS(**settings)  # type: ignore[arg-type]
