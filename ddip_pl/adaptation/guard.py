"""Gradient steps that run away from the data: how they are noticed, and how they are tried again."""

from collections.abc import Iterator

from torch import Tensor

DIVERGENCES = "divergences"  # figure of a step: how often its gradient steps ran away
ATTEMPTS = 3
FAR = 10.0  # times the first loss; a learning rate of 0.1, far too large, raises it 27-fold in one step


def attempts(learning_rate: float) -> Iterator[float]:
    """Learning rates to try, each half of the one before; if all fail, the weights stay as they were."""
    return (learning_rate / 2**failed for failed in range(ATTEMPTS))


def ran_away(losses: Tensor, usual: Tensor) -> Tensor:
    """Whether losses are NaN, infinite or far above the usual ones, each or all of them."""
    return ~(losses.isfinite() & (losses <= FAR * usual))
