"""Total-variation reconstruction of a volume by ADMM, run until it converges."""

from collections.abc import Iterator

from torch import Tensor

from ddip_pl.baselines.baseline import Baseline, absolute
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import OpenUnitInterval, Positive, PositiveInt, checked
from ddip_pl.solvers.admm import LeastSquares, tv_iterations


@checked
class TotalVariation(Baseline):
    """3D total variation by ADMM (Rudin, Osher & Fatemi 1992), see `tv_iterations`.

    Args:
        strength: weight of the total variation, in units of `sigma_y`.
        tolerance: stop once the relative primal and dual residuals are below this.
        iterations: maximum number; a warning is logged if the method has not converged by then.
    """

    copies = 25  # differences along three axes

    def __init__(self, strength: Positive = 0.03, tolerance: OpenUnitInterval = 3e-3, iterations: PositiveInt = 500):
        super().__init__(iterations)
        self.strength, self.tolerance = strength, tolerance

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        strength = absolute(self.strength, measurement)
        iterates = tv_volumes(measurement, strength, self.tolerance, self.iterations)
        return self.until_converged(measurement, iterates, self.tolerance)


def tv_volumes(
    measurement: Measurement, strength: float, tolerance: float = 3e-3, most: int = 500
) -> Iterator[tuple[Tensor, float]]:
    """`tv_iterations` for a measurement, from its pseudo-inverse; `strength` is absolute, for a unit-norm operator."""
    A = measurement.operator
    data = LeastSquares(lambda x: A.adjoint(measurement.residual(x)), A.normal)
    return tv_iterations(data, A.pseudo_inverse(measurement.y), strength, tolerance, most)


def tv_reconstruction(measurement: Measurement, strength: float, tolerance: float = 3e-3, most: int = 500) -> Tensor:
    """The last volume of `tv_volumes`."""
    *_, (x, _) = tv_volumes(measurement, strength, tolerance, most)
    return x
