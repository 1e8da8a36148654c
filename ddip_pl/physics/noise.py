"""The noise level of a measurement, estimated from the measurement itself."""

import numpy as np
import torch
from torch import Tensor

from ddip_pl.physics.operator import LinearOperator

OUTERMOST = 0.05  # share of the measured k-space that is treated as noise
MEDIAN = 0.6744897501960817  # of the absolute value of a standard normal variable
SURPLUS = 0.05  # least share of surplus values that tells the noise level
ENOUGH = 4  # slices that tell the noise level
ITERATIONS, TOLERANCE = 50, 1e-3  # of least squares; what is missing then is far below the noise
SMOOTH = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0])  # fourth difference; 0 for cubic polynomials


def kspace_noise(y: Tensor, radius: Tensor) -> float:
    """Standard deviation of the noise in k-space, `E |n|^2 = sigma^2`; the root mean square over coils.

    This is the median absolute deviation of each coil at the outermost measured frequencies, where an image has the
    least energy. It is too high if that energy exceeds the noise, as in images with sharp edges and almost no noise.

    Args:
        y: `(slices, coils, samples)`, complex.
        radius: `(slices or 1, samples)`, distance from the zero frequency in any unit; nan if not measured.
    """
    limits = np.nanquantile(radius.numpy(force=True), 1 - OUTERMOST, axis=1, keepdims=True)
    outer = (radius >= torch.from_numpy(limits).to(radius)).expand(len(y), -1)
    levels = [torch.view_as_real(coil[outer]).abs().median() / MEDIAN for coil in y.unbind(1)]
    return float(torch.stack(levels).square().mean().mul(2).sqrt())  # variance of both parts of a complex value


def sinogram_noise(y: Tensor, weight: Tensor | None = None) -> float:
    """Standard deviation of the noise in sinograms `(slices, 1, angles, detectors)`; nan with fewer than 5 detectors.

    If it differs from value to value, `weight` times it is the same everywhere, and this is returned.

    This is the median absolute deviation of fourth differences between neighbouring detectors, which noise determines
    and a smooth object hardly affects. It is too high if the object is rough and there is almost no noise, and too low
    if the noise of neighbouring detectors is correlated.
    """
    kernel = (SMOOTH / SMOOTH.norm()).to(y)
    if y.shape[-1] < len(kernel):
        return float("nan")
    differences = (y.unfold(-1, len(kernel), 1) * kernel).sum(-1)
    if weight is not None:
        differences /= (kernel / weight.expand_as(y).unfold(-1, len(kernel), 1)).square().sum(-1).sqrt()
    return float(differences[differences != 0].abs().median() / MEDIAN)  # 0: nothing was measured there


def degrees_of_freedom(operator: LinearOperator, y: Tensor) -> Tensor:
    """Number of values in `y` that images can fit at most, for each slice or coupled group, `(len(y),)`.

    It is the number of unknowns that are measured, or of values if there are fewer. A complex value counts once.
    """
    ones = operator.like.new_ones(len(y) * operator.coupled, *operator.domain[1:])
    unknowns = operator.visible(ones).view(len(y), -1).sum(1) / (2 if y.is_complex() else 1)
    return torch.minimum(operator.values(y), unknowns)


@torch.no_grad()
def surplus_noise(operator: LinearOperator, y: Tensor) -> float:
    """Standard deviation of the noise, from what least squares leaves: `|| A x - y || / sqrt(N - n)`.

    N is the number of values and n that of the degrees of freedom, in a few central slices. Like any residual, it also
    contains what the operator gets wrong, such as errors of the coil maps. It is inf if there are hardly more values
    than unknowns.
    """
    if operator.coupled == 1:
        first = max(0, len(y) - ENOUGH) // 2
        chosen = slice(first, first + ENOUGH)
        operator, y = operator.select(chosen), y[chosen]
    values = float(operator.values(y).sum())
    surplus = values - float(degrees_of_freedom(operator, y).sum())
    if surplus < SURPLUS * values:
        return float("inf")
    x = operator.solve(operator.adjoint(y), ITERATIONS, tolerance=TOLERANCE)
    return float((operator(x) - y).norm()) / surplus**0.5
