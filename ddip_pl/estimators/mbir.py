"""DiffusionMBIR (Chung et al. 2023), accelerated as in DDS: the prior's mean, total variation and the data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators.dds import Gamma, damping
from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.settings import NonNegative, Positive, PositiveInt, checked
from ddip_pl.solvers.admm import ACROSS_SLICES, ALL_AXES, LeastSquares, Split, admm_step, differences, shrink


@checked
class DiffusionMBIR(PosteriorMean):
    """A few iterations of ADMM from the prior's mean, `X0_hat`.

    They minimise `1/2 ||A X - Y||^2 + 1/2 ||X - X0_hat||^2 / gamma + strength sum |D X|`. A 2D prior treats slices
    independently; the total variation couples neighbouring ones. The second term is not part of the published method:
    it keeps the prior's mean where the data are less certain, as in `DDS`. The split and dual variables are carried
    from one diffusion step to the next. In the adaptation loss, which uses different slices every time, they are reset,
    and the slices should be neighbours.

    Args:
        strength: lambda, weight of the total variation, in units of `sigma_y`.
        rho: penalty of ADMM, in units of `sigma_y`; edges lower than `strength / rho` vanish.
        axes: of the differences: across "slices" only, or along "all" three axes (isotropic).
        iterations: maximum number of ADMM iterations per diffusion step.
        cg_iterations: conjugate-gradient steps per ADMM iteration.
        discrepancy: ADMM stops once the residual of the volume falls to this many times the expected size of the
            noise; 0 does all the iterations.
        gamma: weight of the data against the prior's mean, see `DDS`; "infinite" is the published method.
        spread: see `DDS`.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        strength: Positive = 0.03,
        rho: Positive = 1.0,
        axes: Literal["slices", "all"] = "slices",
        iterations: PositiveInt = 10,
        cg_iterations: PositiveInt = 3,
        discrepancy: NonNegative = 1.0,
        gamma: Gamma = "noise",
        spread: Positive = 2.0,
    ):
        self.strength, self.rho, self.discrepancy = strength, rho, discrepancy
        self.axes = ACROSS_SLICES if axes == "slices" else ALL_AXES
        self.iterations, self.cg_iterations = iterations, cg_iterations
        self.gamma, self.spread = gamma, spread

    @classmethod
    def published(cls) -> DiffusionMBIR:
        """The paper's settings, converted to a unit-norm operator.

        The paper uses strength 0.01, rho 0.5 and `sigma_y` 0.01 for a projector of norm 60 to 100; we take 80. With the
        operator divided by its norm, strength and rho are divided by the norm squared and `sigma_y` by the norm.
        """
        return cls(strength=1 / 80, rho=50 / 80, iterations=5, cg_iterations=5, discrepancy=0.0, gamma="infinite")

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        if len(x0_hat) < 2:
            raise InputError(
                "DiffusionMBIR couples neighbouring slices but was given one; give at least 2 slices to the "
                "volume (data.slices) and to the adaptation (adaptation.slices)"
            )
        if not measurement.sigma_y > 0:
            raise InputError("data.sigma_y is 0, but DiffusionMBIR's strength is in units of it; give the noise level")
        strength, rho = self.strength * measurement.sigma_y, self.rho * measurement.sigma_y
        A = measurement.operator
        weight = damping(self.gamma, self.spread, measurement.sigma_y, sigma_t)
        data = LeastSquares(
            lambda x: A.adjoint(measurement.residual(x)) + weight * (x - x0_hat), lambda x: A.normal(x) + weight * x
        )
        enough = measurement.noise_energy(self.discrepancy).sum()
        x = x0_hat
        if memory:
            split = Split(**memory)
        else:
            d = differences(x, self.axes)
            split = Split(shrink(d, strength / rho), d.new_zeros(()).expand_as(d))
        for _ in range(self.iterations):
            x, split = admm_step(x, split, data, self.axes, strength, rho, self.cg_iterations)
            if self.discrepancy and measurement.misfit(x).sum() <= enough:
                break
        return x, split._asdict()
