"""Denoising diffusion null-space model (Wang, Yu & Zhang 2023): data in the range of `A`, prior in its null space."""

from torch import Tensor

from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.settings import OpenUnitInterval, PositiveInt, checked


@checked
class DDNM(PosteriorMean):
    """`x0_hat + A^+ (y - A x0_hat)`: the null space from the prior, the range from the data (eq. 13).

    The correction is the minimum-norm least-squares solution, found by conjugate gradients on
    `A^T A d = A^T (y - A x0_hat)` from `d = 0`. Filtered back-projection cannot replace `A^+`: its error would
    accumulate in `x0_hat`. If `A^+` is `A^T` (single-coil MRI), one step is enough.

    With noisy data, `A^+` becomes `(A^T A + (sigma_y / sigma_t)^2 I)^-1 A^T`: directions in which it would bring more
    noise into the image than `x_t` has are left to the prior. DDNM+ (section 3.3) does the same to the singular values.

    Args:
        iterations: maximum number of conjugate-gradient steps.
        tolerance: a slice is solved once the residual of this system is at most this share of its right-hand side.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, iterations: PositiveInt = 30, tolerance: OpenUnitInterval = 1e-5):
        self.iterations, self.tolerance = iterations, tolerance

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        A = measurement.operator
        gradient = A.adjoint(measurement.residual(x0_hat))
        damping = (measurement.sigma_y / sigma_t) ** 2
        return x0_hat + A.solve(-gradient, self.iterations, damping=damping, tolerance=self.tolerance), {}
