"""Conjugate gradients against dense linear algebra."""

import torch
from helpers import dense, images
from hypothesis import given, settings
from hypothesis import strategies as st

from ddip_pl.physics import PoissonDisc, SingleCoilMRI
from ddip_pl.solvers.cg import conjugate_gradient


@settings(max_examples=30)
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


def test_cg_stays_in_the_range_once_rounding_errors_are_left() -> None:
    """Three distinct eigenvalues, 0 among them: solved after two steps, and later ones must do no harm."""
    A = SingleCoilMRI((1, 64, 64), PoissonDisc(8, 0.08))
    for seed in range(6):
        random = torch.Generator().manual_seed(seed)
        keep, x = torch.rand(64, 64, generator=random) < 0.8, torch.rand(1, 1, 64, 64, generator=random)
        found = conjugate_gradient(lambda x, keep=keep: A.adjoint(keep * A(x)), A.adjoint(keep * A(x)), 20)  # type: ignore[misc]
        assert torch.allclose(keep * A(found), keep * A(x), atol=1e-4)
        assert found.norm() <= x.norm()


def test_cg_has_the_right_gradient() -> None:
    operator = dense(12)
    b = images(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: conjugate_gradient(operator.normal, b, 3), b)
