"""Variance-preserving diffusion (Ho et al. 2020) and its sampler, DDIM (Song et al. 2021).

Pure functions of tensors. `abar` is the cumulative product of `1 - beta`: `x_t = sqrt(abar) x + sqrt(1 - abar) e`.
"""

from typing import Annotated

import torch
from torch import Tensor

from ddip_pl.settings import Range

STEPS, BETA_START, BETA_END = 1000, 1e-4, 2e-2
Timestep = Annotated[int, Range(0, STEPS - 1)]


def noise_schedule(steps: int = STEPS, beta_start: float = BETA_START, beta_end: float = BETA_END) -> Tensor:
    """`abar`, `(steps,)` float32, for linearly growing betas."""
    beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    return (1 - beta).cumprod(0).float()


def timesteps(start: int, steps: int, spacing: float = 1.0) -> list[int]:
    """`steps` timesteps from `start` down to 0, both included: `start (1 - i / (steps - 1))^spacing`, rounded.

    With `spacing` 1 they are evenly spaced (without repeats if `start` is at least `steps - 1`). Larger values
    concentrate them, with repeats, at small timesteps, which decide what the measurement leaves open (compare Karras et
    al. 2022, eq. 5).
    """
    return (start * torch.linspace(1, 0, steps, dtype=torch.float64) ** spacing).round().long().tolist()


def diffuse(x: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Forward diffusion: `x_t = sqrt(abar) x + sqrt(1 - abar) noise`; `abar` broadcasts against `x`."""
    return abar.sqrt() * x + (1 - abar).sqrt() * noise


def tweedie(x_t: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """Posterior mean `E[x_0 | x_t] = (x_t - sqrt(1 - abar) eps) / sqrt(abar)` (Tweedie's formula)."""
    return (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()


def ddim_step(mean: Tensor, eps: Tensor, noise: Tensor, abar_next: Tensor, eta: float) -> Tensor:
    """From the posterior mean to `x_{t-1}` (DDIM; DDS, Chung et al. 2024, eq. 10).

    `sqrt(abar_next) mean + sqrt(1 - abar_next) (eta noise + sqrt(1 - eta^2) eps)`; without fresh noise if `eta` is 0.
    The noise has the variance of the forward process. With `abar_next` 1 the result is the mean.
    """
    return abar_next.sqrt() * mean + (1 - abar_next).sqrt() * (eta * noise + (1 - eta**2) ** 0.5 * eps)


def slerp(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Spherical interpolation between two Gaussian images, `(count, *image)`, both included.

    Neighbouring slices start from similar noise, and the noise of each slice is still Gaussian (Shoemake 1985).
    """
    w = torch.linspace(0, 1, count, device=first.device, dtype=first.dtype).view(-1, *[1] * first.ndim)
    angle = torch.acos(torch.clamp((first * last).sum() / (first.norm() * last.norm()), -1, 1))
    return (torch.sin((1 - w) * angle) * first + torch.sin(w * angle) * last) / torch.sin(angle)
