"""The prior as sampling uses it: noisy image in, posterior mean and noise out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from ddip_pl.prior.batches import Batches
from ddip_pl.prior.schedule import noise_schedule, tweedie

Plane = Literal["slices", "rows", "columns"]  # an image of a plane: the volume at one slice, one row or one column
AXES: dict[Plane, str] = {
    "slices": "s c h w",
    "rows": "h c s w",
    "columns": "w c h s",
}  # axes of the images
THINNEST = 8  # slices; in thinner volumes the other planes made results worse (docs/results/prior.md)


class Denoiser(nn.Module):
    """`(x_t, t) -> (E[x_0 | x_t], eps_theta(x_t, t))`.

    Its images are slices; `across` returns a denoiser for another plane. Ellipsoids are ellipses in every plane, so a
    prior for ellipses serves all planes: one 2D prior, applied to the three planes in turn, gives a volume that is
    consistent in 3D. (TPDM, Lee et al. 2023, alternates two planes, with a prior trained for each.)

    Args:
        network: predicts the noise, `network(x, t) -> eps`; output channels beyond the image's are ignored.
        batch_size: images that pass through the network at once, see `Batches`.

    Attributes:
        batches: how many images pass through the network at once, shared with all views of this denoiser.
        weights: weights that replace the network's own, by name; see `with_weights`.
        slicewise: whether each slice has its own weights, along their first axis.
        plane: the plane of the images.
        abar: of every timestep, `(1000,)`.
        sigma: noise in `x_t / sqrt(abar)` at every timestep.
    """

    abar: Tensor

    def __init__(self, network: nn.Module, batch_size: int = 8):
        super().__init__()
        self.network = network
        self.batches = Batches(batch_size)
        self.weights: dict[str, Tensor] = {}
        self.slicewise = False
        self.plane: Plane = "slices"
        self.register_buffer("abar", noise_schedule(), persistent=False)
        self.sigma: list[float] = ((1 - self.abar) / self.abar).sqrt().tolist()

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Posterior mean and noise of a volume `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        images, channels = self.cut(x_t), x_t.shape[1]
        if self.slicewise:
            assert all(len(weight) == len(images) for weight in self.weights.values()), "see Denoiser.only"

        def noise(batch: slice) -> Tensor:
            x = images[batch]
            return functional_call(self.network, self.only(batch).weights, (x, x.new_full((len(x),), t)))

        eps = self.join(torch.cat(self.batches.map(noise, len(images)))[:, :channels])
        return tweedie(x_t, eps, self.abar[t]), eps

    def with_weights(self, weights: Mapping[str, Tensor], slicewise: bool = False) -> Denoiser:
        """The denoiser with adapted weights.

        Args:
            weights: by name.
            slicewise: whether each slice has its own weights, along their first axis.
        """
        view = copy.copy(self)
        view.weights, view.slicewise = dict(weights), slicewise
        return view

    def across(self, plane: Plane) -> Denoiser:
        """The denoiser for another plane; its `x_t` must be a whole volume."""
        assert plane == "slices" or not self.slicewise, "slices have their own weights, images of other planes do not"
        view = copy.copy(self)
        view.plane = plane
        return view

    def only(self, images: slice) -> Denoiser:
        """The denoiser for an `x_t` that holds only some of the images."""
        if not self.slicewise:
            return self
        return self.with_weights({name: weight[images] for name, weight in self.weights.items()}, slicewise=True)

    def cut(self, volume: Tensor) -> Tensor:
        """A volume `(slices, channels, height, width)` as images of the plane."""
        return rearrange(volume, f"s c h w -> {AXES[self.plane]}")

    def join(self, images: Tensor) -> Tensor:
        """Inverse of `cut`."""
        return rearrange(images, f"{AXES[self.plane]} -> s c h w")

    def abar_at(self, t: int | None) -> Tensor:
        """`abar` at timestep `t`, or 1 for None: the clean image after the last step."""
        return torch.ones_like(self.abar[0]) if t is None else self.abar[t]
