"""The prior as sampling sees it: noisy image in, posterior mean and noise out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddip_pl.prior.schedule import noise_schedule, tweedie

# Orders of the axes of a volume `(slices, channels, rows, columns)` in which another plane of it comes first; each is
# its own inverse.
Plane = tuple[int, int, int, int]
SLICES, ROWS, COLUMNS = (0, 1, 2, 3), (2, 1, 0, 3), (3, 1, 2, 0)


class Denoiser(nn.Module):
    """`(x_t, t) -> (E[x_0 | x_t], eps_theta(x_t, t))`.

    The images are slices, unless `across` says otherwise. A prior of ellipses is one of ellipsoids, which are ellipses
    in whichever plane they are cut; so one 2D prior, applied to the three planes in turn, makes a volume that is
    consistent in 3D. (TPDM, Lee et al. 2023, alternates two planes, with a prior trained for each.)

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
        self.plane = SLICES
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For images `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        weights, channels = dict(self.weights), x_t.shape[1]
        batches = ((x, x.new_full((len(x),), t)) for x in x_t.permute(self.plane).split(self.batch_size))
        eps = torch.cat([functional_call(self.network, weights, batch)[:, :channels] for batch in batches])
        eps = eps.permute(self.plane)
        return tweedie(x_t, eps, self.abar[t]), eps

    @contextmanager
    def across(self, plane: Plane) -> Iterator[None]:
        """Within it, `x_t` is a whole volume, and the images are those of the given plane of it."""
        self.plane = plane
        try:
            yield
        finally:
            self.plane = SLICES

    def abar_at(self, t: int | None) -> Tensor:
        """`abar` at a timestep; None stands for the clean image behind the last one, where it is 1."""
        return torch.ones_like(self.abar[0]) if t is None else self.abar[t]
