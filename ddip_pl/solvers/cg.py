"""Differentiable conjugate gradients (Hestenes & Stiefel 1952) for many systems at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    tolerance: float = 0.0,
    coupled: int = 1,
) -> Tensor:
    """Solve `normal(x) = b` from `x = 0`, in a fixed number of steps or until the solution is good enough.

    Each slice, or each group of `coupled` neighbouring slices, is a system with its own inner products.

    Args:
        normal: symmetric, positive semi-definite and linear; acts on each system separately.
        b: `(slices, ...)`, real or complex; inner products are real.
        iterations: maximum number of steps.
        tolerance: a system stops as soon as `|b - normal(x)|` is at most this share of `|b|`.
        coupled: number of slices per system.

    Returns:
        `x`, with the shape of `b`; a system that is solved early does not change in later steps.
    """
    b = b.unflatten(0, (-1, coupled))

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return (u * v.conj()).real.flatten(1).sum(1).view(-1, *[1] * (b.ndim - 1))

    x, r = torch.zeros_like(b), b
    p, rho = r, inner(r, r)
    # A squared residual below this is rounding error; steps along it would leave the range of `normal`.
    floor = max(tolerance, 8 * torch.finfo(b.dtype).eps) ** 2 * rho.detach()
    for _ in range(iterations):
        if tolerance and not (rho > floor).any():
            break
        q = normal(p.flatten(0, 1)).unflatten(0, (-1, coupled))
        active = rho > floor
        alpha = divide(rho, inner(p, q), active)
        x = x + alpha * p
        r = r - alpha * q
        rho_next = inner(r, r)
        p = r + divide(rho_next, rho, active) * p
        rho = rho_next
    return x.flatten(0, 1)


def divide(numerator: Tensor, denominator: Tensor, active: Tensor) -> Tensor:
    """The quotient where `active`; elsewhere 0, with gradient 0."""
    return torch.where(active, numerator / torch.where(active, denominator, 1), 0)
