"""Differentiable conjugate gradients (Hestenes & Stiefel 1952) for many systems at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    decrease: Tensor | None = None,
    tolerance: float = 0.0,
    coupled: int = 1,
) -> Tensor:
    """Solve `normal(x) = b` from `x = 0`, in a fixed number of steps or until the solution is good enough.

    Each slice, or each group of `coupled` neighbouring slices, is a system with its own inner products.

    Args:
        normal: symmetric, positive semi-definite and linear; acts on each system separately.
        b: `(slices, ...)`, real or complex; inner products are real.
        iterations: maximum number of steps.
        decrease: `(systems,)`; a system stops as soon as `2 b^T x - x^T normal(x)` reaches this value. For
            `normal = A^T A` and `b = A^T r` that is the decrease of the squared residual, `||r||^2 - ||r - A x||^2`.
            The last step of a system is shortened to hit the value exactly.
        tolerance: a system stops as soon as `|b - normal(x)|` is at most this share of `|b|`.
        coupled: number of slices per system.

    Returns:
        `x`, with the shape of `b`; a system that is solved early does not change in later steps.
    """
    b = b.unflatten(0, (-1, coupled))

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return per_system((u * v.conj()).real.flatten(1).sum(1))

    def per_system(value: Tensor) -> Tensor:
        return value.view(-1, *[1] * (b.ndim - 1))

    x, r = torch.zeros_like(b), b
    p, rho = r, inner(r, r)
    # A squared residual below this is rounding error; steps along it would leave the range of `normal`.
    floor = max(tolerance, 8 * torch.finfo(b.dtype).eps) ** 2 * rho.detach()
    left = None if decrease is None else per_system(decrease)
    for _ in range(iterations):
        if tolerance and not (rho > floor).any():
            break
        q = normal(p.flatten(0, 1)).unflatten(0, (-1, coupled))
        active = rho > floor if left is None else (rho > floor) & (left > 0)
        alpha = divide(rho, inner(p, q), active)
        if left is not None:
            # A step a < alpha along p gains (2 a - a^2 / alpha) rho; the full step gains alpha rho.
            gain = alpha * rho
            last = active & (gain >= left)
            short = alpha * (1 - torch.where(last, 1 - divide(left, gain, last), 1).clamp(min=1e-9).sqrt())
            alpha, left = torch.where(last, short, alpha), torch.where(last, 0, left - gain)
        x = x + alpha * p
        r = r - alpha * q
        rho_next = inner(r, r)
        p = r + divide(rho_next, rho, active) * p
        rho = rho_next
    return x.flatten(0, 1)


def divide(numerator: Tensor, denominator: Tensor, active: Tensor) -> Tensor:
    """The quotient where `active`; elsewhere 0, with gradient 0."""
    return torch.where(active, numerator / torch.where(active, denominator, 1), 0)
