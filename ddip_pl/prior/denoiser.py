"""The prior as sampling sees it: noisy image in, posterior mean and noise out."""

import torch
from torch import Tensor, nn

from ddip_pl.prior.schedule import noise_schedule, tweedie


class Denoiser(nn.Module):
    """`(x_t, t) -> (E[x_0 | x_t], eps_theta(x_t, t))`.

    Args:
        network: predicts the noise, `network(x, t) -> eps`; channels behind those of the image are ignored.
    """

    abar: Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For images `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        eps = self.network(x_t, x_t.new_full((len(x_t),), t))[:, : x_t.shape[1]]
        return tweedie(x_t, eps, self.abar[t]), eps

    def abar_at(self, t: int | None) -> Tensor:
        """`abar` at a timestep; None stands for the clean image behind the last one, where it is 1."""
        return torch.ones_like(self.abar[0]) if t is None else self.abar[t]
