"""The prior as sampling sees it: noisy image in, posterior mean and noise out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddip_pl.prior.schedule import noise_schedule, tweedie


class Denoiser(nn.Module):
    """`(x_t, t) -> (E[x_0 | x_t], eps_theta(x_t, t))`.

    Args:
        network: predicts the noise, `network(x, t) -> eps`; channels behind those of the image are ignored.
        batch_size: slices that pass through the network at once.

    Attributes:
        weights: what the network computes with instead of its own weights, by name; adapted weights are put here.
    """

    abar: Tensor

    def __init__(self, network: nn.Module, batch_size: int = 8):
        super().__init__()
        self.network = network
        self.batch_size = batch_size
        self.weights: Mapping[str, Tensor] = {}
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For images `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        weights, channels = dict(self.weights), x_t.shape[1]
        batches = ((x, x.new_full((len(x),), t)) for x in x_t.split(self.batch_size))
        eps = torch.cat([functional_call(self.network, weights, batch)[:, :channels] for batch in batches])
        return tweedie(x_t, eps, self.abar[t]), eps

    def abar_at(self, t: int | None) -> Tensor:
        """`abar` at a timestep; None stands for the clean image behind the last one, where it is 1."""
        return torch.ones_like(self.abar[0]) if t is None else self.abar[t]
