"""Proximal gradient descent with momentum (FISTA; Beck & Teboulle 2009)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@torch.no_grad()
def fista(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    tolerance: float = 0.0,
) -> Iterator[tuple[Tensor, float]]:
    """Minimise `f(x) + g(x)` with steps of length 1.

    Args:
        gradient: of `f`, with a Lipschitz constant of at most 1.
        prox: proximal operator of `g`, `z -> argmin_x g(x) + 1/2 ||x - z||^2`.
        start: `x` to start from.
        iterations: maximum number.
        tolerance: stop once the relative change of `x` in one iteration is below this.

    Yields:
        `x` and its relative change.
    """
    x = z = start
    momentum = 1.0
    for _ in range(iterations):
        before, x = x, prox(z - gradient(z))
        change = float((x - z).norm() / x.norm().clamp(min=1e-12))
        yield x, change
        if change < tolerance:
            break
        earlier, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        z = x + (earlier - 1) / momentum * (x - before)
