"""A prior as a denoiser of DeepInverse (deepinv), for its plug-and-play and diffusion methods."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.denoiser import Denoiser


class PriorDenoiser(nn.Module):
    """`denoiser(x, sigma)`: the prior's posterior mean of images with Gaussian noise.

    deepinv's methods take any module with this signature. The noise level is that of the nearest timestep; the least is
    0.01, the largest 157.

    Args:
        prior: file or name of the prior, see `load_prior`.
        batch_size: images that pass through the network at once.

    Raises:
        InputError: the prior cannot be read.
    """

    def __init__(self, prior: str | Path, batch_size: int = 8):
        super().__init__()
        self.denoiser = Denoiser(load_prior(prior), batch_size).requires_grad_(False)

    def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
        """Posterior mean of `x (images, channels, height, width)`.

        Args:
            x: images in [0, 1] plus noise.
            sigma: standard deviation of the noise, one for all images or one for each.
        """
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten().expand(len(x))
        known = torch.tensor(self.denoiser.sigma, dtype=x.dtype, device=x.device)
        nearest = (levels[:, None].log() - known.log()).abs().argmin(1)
        found = torch.empty_like(x)
        for t in nearest.unique().tolist():
            same = nearest == t
            found[same] = self.denoiser(self.denoiser.abar[t].sqrt() * x[same], t)[0]
        return found
