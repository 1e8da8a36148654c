"""Total variation of a volume, and the alternating direction method of multipliers (ADMM) for it.

`min_X 1/2 ||A X - Y||^2 + strength sum |D X|`, where `D X` are differences of neighbouring voxels along chosen axes
and `|.|` is their Euclidean length at each voxel (isotropic; Rudin, Osher & Fatemi 1992; Boyd et al. 2011).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddip_pl.physics.measurement import Measurement
from ddip_pl.solvers.cg import conjugate_gradient

ALL_AXES = (0, 2, 3)  # slices, rows, columns
ACROSS_SLICES = (0,)


def differences(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`D x`: forward differences of `x (slices, channels, height, width)`, 0 behind the last; `(axes, *x.shape)`."""
    return torch.stack([x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in axes])


def differences_adjoint(d: Tensor, axes: Sequence[int]) -> Tensor:
    """`D^T d`, exact: `<D x, d> = <x, D^T d>`."""
    parts = []
    for part, axis in zip(d, axes, strict=True):
        zero = torch.zeros_like(part.narrow(axis, 0, 1))
        parts.append(part.narrow(axis, 0, part.shape[axis] - 1).diff(dim=axis, prepend=zero, append=zero))
    return -torch.stack(parts).sum(0)


def shrink(d: Tensor, threshold: float) -> Tensor:
    """Proximal operator of `threshold |d|`: difference vectors, over axes and channels, shortened by `threshold`."""
    length = torch.linalg.vector_norm(d, dim=(0, 2), keepdim=True)  # whose gradient at 0 is 0
    return d * (1 - threshold / length.clamp(min=1e-12)).clamp(min=0)


def total_variation(x: Tensor, axes: Sequence[int] = ALL_AXES) -> Tensor:
    """`sum |D x|` of a volume."""
    return differences(x, axes).square().sum((0, 2)).sqrt().sum()


@dataclass
class Split:
    """What ADMM keeps beside the image, each `(axes, slices, channels, height, width)`.

    Attributes:
        d: the differences, shrunk.
        u: the scaled dual variable.
    """

    d: Tensor
    u: Tensor


def admm_step(
    x: Tensor, split: Split, measurement: Measurement, axes: Sequence[int], strength: float, rho: float, iterations: int
) -> tuple[Tensor, Split]:
    """One iteration of ADMM from the volume `x`, whose least-squares problem gets `iterations` of conjugate gradients.

    Args:
        rho: penalty; changes the way to the solution, not the solution.

    Returns:
        The next volume and split.
    """
    operator = measurement.operator

    def normal(v: Tensor) -> Tensor:
        return operator.normal(v) + rho * differences_adjoint(differences(v, axes), axes)

    gap = split.d - split.u - differences(x, axes)
    gradient = rho * differences_adjoint(gap, axes) - operator.adjoint(measurement.residual(x))
    x = x + conjugate_gradient(normal, gradient, iterations, coupled=len(x))  # by the differences
    d = differences(x, axes)
    shrunk = shrink(d + split.u, strength / rho)
    return x, Split(shrunk, split.u + d - shrunk)
