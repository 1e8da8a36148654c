"""The posterior mean `D_theta(x_t | y)`, estimated from a noisy image and the measurement."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser

Memory = dict[str, Tensor]


class Estimate(NamedTuple):
    """The result of an estimator.

    Attributes:
        mean: posterior mean `D_theta(x_t | y)`, with the shape of `x_t (slices, channels, height, width)`.
        eps: the noise that the prior predicts in `x_t`, with the same shape.
        memory: tensors that the estimator needs in the next diffusion step, by name.
    """

    mean: Tensor
    eps: Tensor
    memory: Memory


class PosteriorMean(ABC):
    """`D_theta(x_t | y)` for some or all slices of a volume; used both for sampling and in the adaptation loss.

    An estimator has no state: what it carries from one diffusion step to the next goes through `memory`, which the
    sampler keeps. Most estimators correct the prior's mean and implement only `condition`. One that needs the gradient
    through the network overrides `__call__`.
    """

    def __call__(
        self, denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement, memory: Memory | None = None
    ) -> Estimate:
        """Posterior mean at timestep `t`; leave out `memory` in the first diffusion step."""
        x0_hat, eps = denoiser(x_t, t)
        mean, memory = self.condition(x0_hat, measurement, memory or {}, denoiser.sigma[t])
        return Estimate(mean, eps, memory)

    @abstractmethod
    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        """Fit the prior's mean to the measurement.

        Args:
            x0_hat: the prior's mean.
            measurement: of its slices.
            memory: of the last diffusion step, empty in the first.
            sigma_t: noise in `x_t / sqrt(abar)`, the noisy image in the scale of the clean one.

        Returns:
            The posterior mean and the next memory.
        """
