"""The posterior mean `D_theta(x_t | y)`: what a method does with a noisy image and the measurement."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser

Memory = dict[str, Tensor]


class Estimate(NamedTuple):
    """What an estimator makes of `x_t`.

    Attributes:
        mean: posterior mean `D_theta(x_t | y)`, of the shape of `x_t (slices, channels, height, width)`.
        eps: the noise that the prior sees in `x_t`, of the same shape.
        memory: what the estimator carries to the next diffusion step, by name.
    """

    mean: Tensor
    eps: Tensor
    memory: Memory


class PosteriorMean(ABC):
    """`D_theta(x_t | y)`, for some or all slices of a volume; the same object serves sampling and the adaptation loss.

    An estimator has no state: whatever it carries from one diffusion step to the next goes through `memory`, which the
    sampler keeps. Most estimators correct the prior's own mean and implement `condition` only; one that needs the
    gradient through the network overrides `__call__`.
    """

    def __call__(
        self, denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement, memory: Memory | None = None
    ) -> Estimate:
        """Posterior mean at timestep `t`; without `memory`, as in the first diffusion step."""
        x0_hat, eps = denoiser(x_t, t)
        mean, memory = self.condition(x0_hat, measurement, memory or {})
        return Estimate(mean, eps, memory)

    @abstractmethod
    def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
        """Make the prior's mean `x0_hat` agree with the measurement; returns the posterior mean and the next memory."""
