"""DiffusionMBIR (Chung et al. 2023) in its DDS-accelerated form: the prior's mean, total variation and the data."""

from typing import Literal

from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.estimators.tv import ACROSS_SLICES, ALL_AXES, Split, admm_step, differences, shrink
from ddip_pl.physics.measurement import Measurement


class DiffusionMBIR(PosteriorMean):
    """A few iterations of ADMM on `min_X 1/2 ||A X - Y||^2 + strength sum |D X|` from the prior's mean.

    A 2D prior knows nothing of the neighbouring slices; the total variation across them does. Split and dual variables
    are carried from one diffusion step to the next. (In the adaptation loss, where the slices change, they start anew;
    with `axes` "slices" or "all" these should be neighbours.)

    Args:
        strength: lambda, weight of the total variation, in the scale of the unit-norm operator.
        rho: penalty of ADMM in that scale; `strength / rho` is the difference in intensity below which edges vanish.
        axes: of the differences: across "slices" only, as published, or along "all" three axes, isotropic.
        iterations: of ADMM at each diffusion step.
        cg_iterations: conjugate-gradient steps of each of them.
    """

    def __init__(
        self,
        strength: float = 1e-5,
        rho: float = 1e-3,
        axes: Literal["slices", "all"] = "slices",
        iterations: int = 5,
        cg_iterations: int = 5,
    ):
        if axes not in ("slices", "all"):
            raise InputError(f"axes of DiffusionMBIR is {axes!r}; give 'slices' or 'all'")
        for name, value in {"strength": strength, "rho": rho}.items():
            if not value > 0:
                raise InputError(f"{name} of DiffusionMBIR is {value}; give a positive number")
        for name, count in {"iterations": iterations, "cg_iterations": cg_iterations}.items():
            if count < 1:
                raise InputError(f"{name} of DiffusionMBIR is {count}; give at least 1")
        self.strength, self.rho = strength, rho
        self.axes = ACROSS_SLICES if axes == "slices" else ALL_AXES
        self.iterations, self.cg_iterations = iterations, cg_iterations

    def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
        if len(x0_hat) < 2:
            raise InputError(
                "DiffusionMBIR couples neighbouring slices and was given one; give a volume of at least 2 "
                "(data.slices), and let an adaptation draw at least 2 (adaptation.slices)"
            )
        x = x0_hat
        if memory:
            split = Split(memory["d"], memory["u"])
        else:
            d = differences(x, self.axes)
            split = Split(shrink(d, self.strength / self.rho), d.new_zeros(()).expand_as(d))
        for _ in range(self.iterations):
            x, split = admm_step(x, split, measurement, self.axes, self.strength, self.rho, self.cg_iterations)
        return x, {"d": split.d, "u": split.u}
