"""Total-variation reconstruction of a volume by ADMM, run until it has converged."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddip_pl.baselines.baseline import Baseline, Step, absolute, warn_unless_converged
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.solvers.admm import ALL_AXES, Split, admm_step, differences, differences_adjoint


@torch.no_grad()
def tv_iterations(
    measurement: Measurement, strength: float, tolerance: float = 1e-3, most: int = 500, start: Tensor | None = None
) -> Iterator[tuple[Tensor, float]]:
    """`min_X 1/2 ||A X - Y||^2 + strength sum |D X|`, isotropic, along all three axes.

    It stops when primal and dual residual are both below `tolerance` of what they are measured against (Boyd et al.
    2011, section 3.3), or behind `most` iterations. The penalty starts at `10 strength`, a shrinkage of a tenth of the
    image's range, and is adjusted while the two residuals are out of balance (section 3.4.1).

    Args:
        strength: weight of the total variation, in the scale of the unit-norm operator.
        start: volume to start from, by default the pseudo-inverse.

    Raises:
        InputError: `strength` is not positive.

    Yields:
        The volume `(slices, channels, height, width)`, and the larger of the two relative residuals.
    """
    if not strength > 0:
        raise InputError(f"strength of the total variation is {strength}; give a positive number")
    if most < 1:
        raise InputError(f"{most} iterations of the total variation; give at least 1")
    x = measurement.operator.pseudo_inverse(measurement.y) if start is None else start
    d = differences(x, ALL_AXES)
    split, rho = Split(d, torch.zeros_like(d)), 10 * strength
    for iteration in range(most):
        before = split.d
        x, split = admm_step(x, split, measurement, ALL_AXES, strength, rho, iterations=5)
        d = differences(x, ALL_AXES)
        primal = (d - split.d).norm() / torch.maximum(d.norm(), split.d.norm())
        dual = differences_adjoint(split.d - before, ALL_AXES).norm() / differences_adjoint(split.u, ALL_AXES).norm()
        yield x, float(max(primal, dual))
        if max(primal, dual) < tolerance:
            break
        if iteration < 100 and iteration % 5 == 4 and max(primal, dual) > 10 * min(primal, dual):
            factor = 2.0 if primal > dual else 0.5
            rho, split = rho * factor, Split(split.d, split.u / factor)


def tv_reconstruction(
    measurement: Measurement, strength: float, tolerance: float = 1e-3, most: int = 500, start: Tensor | None = None
) -> Tensor:
    """The last volume of `tv_iterations`."""
    *_, (x, _) = tv_iterations(measurement, strength, tolerance, most, start)
    return x


class TotalVariation(Baseline):
    """3D total variation by ADMM (Rudin, Osher & Fatemi 1992), see `tv_iterations`.

    Args:
        strength: weight of the total variation, in units of `sigma_y`.
        tolerance: relative primal and dual residual at which it has converged.
        iterations: at most; a line says so if it has not converged by then.
    """

    def __init__(self, strength: float = 0.03, tolerance: float = 1e-3, iterations: int = 500):
        super().__init__(iterations)
        self.strength, self.tolerance = strength, tolerance

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        strength = absolute(self.strength, measurement)
        for images, change in tv_iterations(measurement, strength, self.tolerance, self.iterations):
            yield images, {"change": change}
        warn_unless_converged(change, self.tolerance, self.iterations)
