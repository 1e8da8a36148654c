"""FISTA on the lasso: the conditions that only its solution fulfils, and what momentum is good for."""

import pytest
import torch
from torch import Tensor

from ddip_pl.solvers.fista import fista

STRENGTH = 0.02


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A badly conditioned matrix of unit norm, and data."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(30, 20, dtype=torch.float64, generator=generator) * torch.logspace(0, -2, 20).double()
    return matrix / torch.linalg.matrix_norm(matrix, 2), torch.randn(30, dtype=torch.float64, generator=generator)


def soft(z: Tensor) -> Tensor:
    return z.sign() * (z.abs() - STRENGTH).clamp(min=0)


def lasso(iterations: int, tolerance: float = 0.0) -> list[tuple[Tensor, float]]:
    a, y = problem()
    start = torch.zeros(20, dtype=torch.float64)
    return list(fista(lambda x: a.T @ (a @ x - y), soft, start, iterations, tolerance))


def objective(x: Tensor) -> float:
    a, y = problem()
    return float((a @ x - y).square().sum() / 2 + STRENGTH * x.abs().sum())


def test_the_solution_fulfils_the_optimality_conditions() -> None:
    a, y = problem()
    x, _ = lasso(20000, 1e-13)[-1]
    dual = a.T @ (y - a @ x) / STRENGTH
    used = x != 0
    assert 0 < int(used.sum()) < 20
    assert torch.allclose(dual[used], x[used].sign(), atol=1e-6)
    assert dual.abs().max() <= 1 + 1e-6


def test_momentum_needs_fewer_iterations_than_none() -> None:
    a, y = problem()
    best = objective(lasso(20000, 1e-13)[-1][0])
    x = torch.zeros(20, dtype=torch.float64)
    for _ in range(300):
        x = soft(x - a.T @ (a @ x - y))
    assert objective(lasso(300)[-1][0]) - best < 0.1 * (objective(x) - best)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_tolerance_is_the_change_at_which_it_ends(tolerance: float) -> None:
    changes = [change for _, change in lasso(20000, tolerance)]
    assert changes[-1] < tolerance <= min(changes[:-1])
    assert len(lasso(7)) == 7
