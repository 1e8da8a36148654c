"""Conjugate gradients (Hestenes & Stiefel 1952), differentiable, with inner products of their own for every slice."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(normal: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve `normal(x) = b` from `x = 0` in a fixed number of steps.

    Args:
        normal: symmetric, positive semi-definite and linear; acts on each slice by itself.
        b: `(slices, ...)`.

    Returns:
        `x`, of the shape of `b`; a slice that is solved before the last step stays as it is.
    """

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).view(-1, *[1] * (u.ndim - 1))

    x, r = torch.zeros_like(b), b
    p, rho = r, inner(r, r)
    # What is left of a residual below this is rounding, and following it leads out of the range of `normal`.
    floor = torch.finfo(b.dtype).eps ** 2 * rho.detach()
    for _ in range(iterations):
        q = normal(p)
        active = rho > floor
        alpha = divide(rho, inner(p, q), active)
        x = x + alpha * p
        r = r - alpha * q
        rho_next = inner(r, r)
        p = r + divide(rho_next, rho, active) * p
        rho = rho_next
    return x


def divide(numerator: Tensor, denominator: Tensor, active: Tensor) -> Tensor:
    """Quotient where `active`, elsewhere 0 with gradient 0."""
    return torch.where(active, numerator / torch.where(active, denominator, 1), 0)
