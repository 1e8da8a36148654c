"""FISTA with cycle spinning (Coifman & Donoho 1995): the grid of the transform moves in every iteration."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddip_pl.baselines.baseline import step
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.step import Step
from ddip_pl.solvers.fista import fista


def spinning_fista(
    measurement: Measurement, prox: Callable[[Tensor], Tensor], period: int, iterations: int
) -> Iterator[Step]:
    """FISTA from the pseudo-inverse, with steps of length 1, as suits operators of unit norm.

    Before each proximal step the images are shifted at random, cyclically, and afterwards shifted back. So no pixel is
    always at the border of the same block or wavelet, whose artefacts would otherwise stay (as in Figueiredo & Nowak
    2003). The images never settle completely, as the problem changes with the shift. For the same reason the momentum
    is never reset, as O'Donoghue & Candes (2015) do: that costs 1 dB in CT. The shifts are always the same.

    Args:
        measurement: what is reconstructed.
        prox: proximal operator for images `(slices, channels, height, width)`.
        period: shifts are from 0 to below this, in pixels.
        iterations: number.
    """
    A = measurement.operator
    shifts = torch.Generator().manual_seed(0)

    def shifted(z: Tensor) -> Tensor:
        down, right = torch.randint(period, (2,), generator=shifts).tolist()
        return prox(z.roll((down, right), (-2, -1))).roll((-down, -right), (-2, -1))

    iterates = fista(
        gradient=lambda z: A.adjoint(measurement.residual(z)),
        prox=shifted,
        start=A.pseudo_inverse(measurement.y),
        iterations=iterations,
    )
    for images, change in iterates:
        yield step(images, measurement, change=change)
