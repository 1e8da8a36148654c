"""Total variation of a volume, minimised by the alternating direction method of multipliers (ADMM).

`min_X 1/2 ||A X - Y||^2 + strength sum |D X|`, where `D X` are the differences of neighbouring voxels along the chosen
axes and `|.|` is their Euclidean length at each voxel (isotropic; Rudin, Osher & Fatemi 1992; Boyd et al. 2011).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.solvers.cg import conjugate_gradient

ALL_AXES = (0, 2, 3)  # slices, rows, columns
ACROSS_SLICES = (0,)
TINY = 1e-24


def differences(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`D x`, `(axes, *x.shape)`: forward differences of `x (slices, channels, height, width)`, 0 at the end."""
    d = x.new_zeros(len(axes), *x.shape)
    for i, axis in enumerate(axes):
        d[i].narrow(axis, 0, x.shape[axis] - 1).copy_(x.diff(dim=axis))
    return d


def differences_adjoint(d: Tensor, axes: Sequence[int]) -> Tensor:
    """`D^T d`, exact: `<D x, d> = <x, D^T d>`."""
    x = d.new_zeros(d.shape[1:])
    for part, axis in zip(d, axes, strict=True):
        last = x.shape[axis] - 1
        inner = part.narrow(axis, 0, last)
        x.narrow(axis, 0, last).sub_(inner)
        x.narrow(axis, 1, last).add_(inner)
    return x


def shrink(d: Tensor, threshold: float) -> Tensor:
    """Proximal operator of `threshold |d|`: shorten each vector of differences (over axes and channels)."""
    length = (d.square().sum((0, 2), keepdim=True) + TINY).sqrt()  # faster than vector_norm; its gradient at 0 is 0
    return d * (1 - threshold / length).clamp(min=0)


def total_variation(x: Tensor, axes: Sequence[int] = ALL_AXES) -> Tensor:
    """`sum |D x|` of a volume."""
    return differences(x, axes).square().sum((0, 2)).sqrt().sum()


class LeastSquares(NamedTuple):
    """The data term `1/2 ||A x - y||^2`.

    Attributes:
        gradient: `x -> A^T (A x - y)`.
        normal: `x -> A^T A x`.
    """

    gradient: Callable[[Tensor], Tensor]
    normal: Callable[[Tensor], Tensor]


class Split(NamedTuple):
    """The variables of ADMM besides the volume, each `(axes, slices, channels, height, width)`.

    Attributes:
        d: the differences, shrunk.
        u: the scaled dual variable.
    """

    d: Tensor
    u: Tensor


def admm_step(
    x: Tensor, split: Split, data: LeastSquares, axes: Sequence[int], strength: float, rho: float, iterations: int,
    relaxation: float = 1.0,
) -> tuple[Tensor, Split]:  # fmt: skip
    """One iteration of ADMM from the volume `x`.

    Args:
        x: `(slices, channels, height, width)`.
        split: of the last iteration.
        data: the data term.
        axes: of the differences.
        strength: weight of the total variation.
        rho: penalty; affects the convergence, not the solution.
        iterations: conjugate-gradient steps on the least-squares problem for `x`.
        relaxation: 1, or up to 2 for steps that go too far, which often converge faster (Boyd et al. 2011, section
            3.4.3).

    Returns:
        The next volume and split.
    """

    def normal(v: Tensor) -> Tensor:
        return data.normal(v) + rho * differences_adjoint(differences(v, axes), axes)

    gap = split.d - split.u - differences(x, axes)
    gradient = rho * differences_adjoint(gap, axes) - data.gradient(x)
    x = x + conjugate_gradient(normal, gradient, iterations, coupled=len(x))  # differences couple the slices
    d = split.d.lerp(differences(x, axes), relaxation)
    shrunk = shrink(d + split.u, strength / rho)
    return x, Split(shrunk, split.u + d - shrunk)


@torch.no_grad()
def tv_iterations(
    data: LeastSquares, start: Tensor, strength: float, tolerance: float = 3e-3, most: int = 500
) -> Iterator[tuple[Tensor, float]]:
    """ADMM along all three axes, run until it converges.

    It stops when primal and dual residual, each relative to its own scale, are both below `tolerance` (Boyd et al.
    2011, section 3.3), or after `most` iterations. The penalty starts at `30 strength`, a shrinkage of a thirtieth of
    the image's range, and is adjusted while the two residuals are out of balance (section 3.4.1).

    Args:
        data: the data term.
        start: volume to start from, `(slices, channels, height, width)`.
        strength: weight of the total variation.
        tolerance: see above.
        most: maximum number of iterations.

    Raises:
        InputError: `strength` is not positive, or `most` is below 1.

    Yields:
        The volume, and the larger of the two relative residuals.
    """
    if not strength > 0:
        raise InputError(f"strength of the total variation is {strength}; give a positive number")
    if most < 1:
        raise InputError(f"{most} iterations of the total variation; give at least 1")
    x, d = start, differences(start, ALL_AXES)
    split, rho = Split(d, torch.zeros_like(d)), 30 * strength
    for iteration in range(most):
        before = split.d
        x, split = admm_step(x, split, data, ALL_AXES, strength, rho, iterations=10, relaxation=1.8)
        d = differences(x, ALL_AXES)
        primal = (d - split.d).norm() / torch.maximum(d.norm(), split.d.norm())
        dual = differences_adjoint(split.d - before, ALL_AXES).norm() / differences_adjoint(split.u, ALL_AXES).norm()
        yield x, float(max(primal, dual))
        if max(primal, dual) < tolerance:
            break
        if iteration < 100 and iteration % 5 == 4 and max(primal, dual) > 10 * min(primal, dual):
            factor = 2.0 if primal > dual else 0.5
            rho, split = rho * factor, Split(split.d, split.u / factor)
