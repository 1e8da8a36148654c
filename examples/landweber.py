"""A custom estimator: gradient descent from the prior's mean."""

from typing import Annotated

from torch import Tensor

from ddip_pl.estimators import Memory, PosteriorMean
from ddip_pl.physics import Measurement
from ddip_pl.settings import PositiveInt, Range, checked


@checked
class Landweber(PosteriorMean):
    """A few steps `x <- x - step A^T (A x - y)` from `x0_hat` (Landweber 1951).

    Each is a step of gradient descent on `1/2 ||A x - y||^2`. Since `||A|| = 1`, any step length below 2 converges.

    Args:
        iterations: number of steps.
        step: step length.

    Raises:
        InputError: `iterations` is below 1, or `step` is not between 0 and 2.
    """

    def __init__(self, iterations: PositiveInt = 10, step: Annotated[float, Range(0, 2, above=True, below=True)] = 1.0):
        self.iterations, self.step = iterations, step

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        A, x = measurement.operator, x0_hat
        for _ in range(self.iterations):
            x = x - self.step * A.adjoint(measurement.residual(x))
        return x, {}  # nothing to keep for the next diffusion step
