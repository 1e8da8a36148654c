"""The prior as sampling sees it: noisy image in, posterior mean and noise out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from ddip_pl.prior.schedule import noise_schedule, tweedie

Plane = Literal["slices", "rows", "columns"]  # of a volume: what is at one slice, one row, one column
AXES: dict[Plane, str] = {"slices": "s c h w", "rows": "h c s w", "columns": "w c h s"}  # the images' axis first


class Denoiser(nn.Module):
    """`(x_t, t) -> (E[x_0 | x_t], eps_theta(x_t, t))`.

    The images are slices; `across` returns a denoiser of another plane. A prior of ellipses is one of ellipsoids, which
    are ellipses in whichever plane they are cut. So one 2D prior, applied to the three planes in turn, makes a volume
    that is consistent in 3D. (TPDM, Lee et al. 2023, alternates two planes, with a prior trained for each.)

    Args:
        network: predicts the noise, `network(x, t) -> eps`; output channels beyond those of the image are ignored.
        batch_size: images that pass through the network at once.

    Attributes:
        weights: what the network computes with instead of its own weights, by name; see `with_weights`.
        slicewise: the first axis of these weights is that of the slices, each of which has its own.
        plane: whose images pass through the network.
    """

    abar: Tensor

    def __init__(self, network: nn.Module, batch_size: int = 8):
        super().__init__()
        self.network = network
        self.batch_size = batch_size
        self.weights: dict[str, Tensor] = {}
        self.slicewise = False
        self.plane: Plane = "slices"
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def forward(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For volumes `x_t (slices, channels, height, width)` at timestep `t`, 0 .. 999."""
        images, channels = self.cut(x_t), x_t.shape[1]
        if self.slicewise:
            assert all(len(weight) == len(images) for weight in self.weights.values()), "see Denoiser.only"
        noise = []
        for first in range(0, len(images), self.batch_size):
            batch = slice(first, first + self.batch_size)
            x = images[batch]
            noise.append(functional_call(self.network, self.only(batch).weights, (x, x.new_full((len(x),), t))))
        eps = self.join(torch.cat(noise)[:, :channels])
        return tweedie(x_t, eps, self.abar[t]), eps

    def with_weights(self, weights: Mapping[str, Tensor], slicewise: bool = False) -> Denoiser:
        """The denoiser that computes with adapted weights.

        Args:
            weights: by name.
            slicewise: every slice has its own, along the first axis of the weights.
        """
        view = copy.copy(self)
        view.weights, view.slicewise = dict(weights), slicewise
        return view

    def across(self, plane: Plane) -> Denoiser:
        """The denoiser whose images are those at each slice, row or column of a whole volume `x_t`."""
        assert plane == "slices" or not self.slicewise, "slices have weights of their own, other planes have none"
        view = copy.copy(self)
        view.plane = plane
        return view

    def only(self, images: slice) -> Denoiser:
        """The denoiser for an `x_t` that holds some of the images only."""
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
        """`abar` at a timestep; None stands for the clean image after the last one, where it is 1."""
        return torch.ones_like(self.abar[0]) if t is None else self.abar[t]
