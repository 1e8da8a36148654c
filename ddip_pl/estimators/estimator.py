"""The posterior mean `D_theta(x_t | y)`: what a method does with a noisy image and the measurement."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class PosteriorMean(ABC):
    """`D_theta(x_t | y)`, for some or all slices of a volume; the same object serves sampling and the adaptation loss.

    Most estimators correct the prior's own mean and write `condition` only; one that needs the gradient through the
    network writes `__call__`.
    """

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """Posterior mean and predicted noise, both of the shape of `x_t (slices, channels, height, width)`."""
        x0_hat, eps = denoiser(x_t, t)
        return self.condition(x0_hat, measurement), eps

    @abstractmethod
    def condition(self, x0_hat: Tensor, measurement: Measurement) -> Tensor:
        """Make the prior's mean `x0_hat` agree with the measurement."""
