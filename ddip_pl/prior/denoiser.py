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
        slicewise: the first axis of these weights is that of the slices, each of which has its own.
    """

    abar: Tensor

    def __init__(self, network: nn.Module, batch_size: int = 8):
        super().__init__()
        self.network = network
        self.batch_size = batch_size
        self.weights: Mapping[str, Tensor] = {}
        self.slicewise = False
        self.plane = SLICES
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For images `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        images, channels = x_t.permute(self.plane), x_t.shape[1]
        if self.slicewise:
            assert self.plane == SLICES, "slices have weights of their own, other planes have none"
            assert all(len(weight) == len(images) for weight in self.weights.values()), "see Denoiser.only"
        noise = []
        for first in range(0, len(images), self.batch_size):
            batch = slice(first, first + self.batch_size)
            x = images[batch]
            noise.append(functional_call(self.network, self.weights_of(batch), (x, x.new_full((len(x),), t))))
        eps = torch.cat(noise)[:, :channels].permute(self.plane)
        return tweedie(x_t, eps, self.abar[t]), eps

    def weights_of(self, images: slice) -> dict[str, Tensor]:
        """Adapted weights for some of the images."""
        return {name: weight[images] if self.slicewise else weight for name, weight in self.weights.items()}

    @contextmanager
    def only(self, images: slice) -> Iterator[None]:
        """Within it, `x_t` holds these of the images only."""
        weights, self.weights = self.weights, self.weights_of(images)
        try:
            yield
        finally:
            self.weights = weights

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
