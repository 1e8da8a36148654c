"""Random ellipses: the only images that a prior is trained on."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

Variant = Literal["uniform", "disk", "wide"]
MOST = {"uniform": 70, "disk": 140}  # most ellipses per phantom, and the mean of the Poisson draw
WIDE_OF: tuple[Literal["uniform", "disk"], ...] = ("uniform", "uniform", "disk")
SCANNED = 0.6  # fraction of "wide" phantoms that look scanned; the rest are as published
DISK_RADIUS = 0.4745
Item = dict[str, Any]  # all random parameters of one phantom


def draw_ellipses(rng: np.random.Generator, variant: Literal["uniform", "disk"] = "uniform") -> np.ndarray:
    """Parameters of one phantom's ellipses on [-1, 1]^2.

    "uniform": up to 70 ellipses anywhere (Adler & Oktem 2017; Barbano et al. 2022). "disk": up to 140, smaller, with
    centres on a disk. Unused rows are zero.

    Returns:
        `(70 or 140, 6)` float64: value, two semi-axes, centre x and y, rotation in radians, in ODL's order.
    """
    most = MOST[variant]
    value = rng.uniform(-0.4, 1.0, most)
    axes = 0.2 * rng.exponential(1.0, (2, most))
    rotation = rng.uniform(0, 2 * np.pi, most)
    if variant == "uniform":
        centre = rng.uniform(-0.9, 0.9, (2, most))
    else:
        axes *= DISK_RADIUS
        angle = rng.uniform(0, 2 * np.pi, most)
        centre = rng.triangular(0, DISK_RADIUS, DISK_RADIUS, most) * np.stack([np.cos(angle), np.sin(angle)])
    ellipses = np.stack([value, *axes, *centre, rotation], axis=1)
    ellipses[min(rng.poisson(most), most) :] = 0
    return ellipses


def render(ellipses: Tensor, size: int) -> Tensor:
    """Sum of ellipses on the pixel grid of [-1, 1]^2, with ODL's conventions.

    The first image axis is x, the second y; the centres of the outermost pixels are at -1 and 1.
    Each line of pixels at constant x cuts an ellipse in an interval known in closed form, so only the two ends of the
    interval are written and a running sum fills it: the cost grows with the number of lines, not of pixels.

    Args:
        ellipses: `(batch, count, 6)`, see `draw_ellipses`; float64 keeps the background at zero.

    Returns:
        `(batch, size, size)`, with the dtype of `ellipses`.
    """
    batch, count, _ = ellipses.shape
    value, a, b, centre_x, centre_y, rotation = rearrange(ellipses, "batch count parameter -> parameter (batch count)")
    cos, sin = rotation.cos(), rotation.sin()
    # The ellipse covers |x| <= sqrt(extent), where its edge is y = slope x +- a b / extent sqrt(extent - x^2).
    extent = ((a * cos) ** 2 + (b * sin) ** 2).clamp(min=torch.finfo(ellipses.dtype).tiny)
    slope = (a**2 - b**2) * cos * sin / extent
    pixel = (size - 1) / 2
    x = torch.arange(size, device=ellipses.device, dtype=ellipses.dtype) / pixel - 1 - centre_x[:, None]
    gap = torch.addcmul(extent[:, None], x, x, value=-1)

    ellipse, line = (gap >= 0).nonzero(as_tuple=True)  # most lines miss most ellipses
    half = (pixel * a * b / extent)[ellipse] * gap[ellipse, line].sqrt()
    middle = (pixel * slope)[ellipse] * x[ellipse, line] + (pixel * (centre_y + 1))[ellipse]
    value = value[ellipse]
    start = (ellipse // count * size + line) * (size + 1)
    ends = ellipses.new_zeros(batch * size * (size + 1))
    ends.scatter_add_(0, start + (middle - half).ceil().clamp(0, size).long(), value)
    ends.scatter_add_(0, start + (middle + half).floor().clamp(-1, size - 1).long() + 1, -value)
    return ends.view(batch, size, size + 1).cumsum(2)[:, :, :size]


def phantoms(ellipses: Tensor, size: int) -> Tensor:
    """Phantoms as published, `(batch, 1, size, size)` float32 in [0, 1], from ellipses `(batch, count, 6)` float64."""
    return stretch(render(ellipses, size))


def scanned(ellipses: Tensor, size: int, look: Tensor, shading: Tensor) -> Tensor:
    """Phantoms as a scanner would show them: blurred, shaded and windowed.

    Args:
        ellipses: `(batch, count, 6)` float64.
        look: `(batch, 4)`: standard deviation of the blur in pixels, the intensities that become 0 and 1, and the level
            to which 0 is then raised.
        shading: `(batch, 4, 4)` on a coarse grid; the image is multiplied by the exponential of this smooth field.

    Returns:
        `(batch, 1, size, size)` float32 in [0, 1].
    """
    blur, low, high, level = rearrange(look.float(), "batch parameter -> parameter batch 1 1 1")
    image = F.avg_pool2d(stretch(render(ellipses, 2 * size)), 2)  # each pixel is the mean over its area
    row, column = (frequency(size, device=image.device) for frequency in (torch.fft.fftfreq, torch.fft.rfftfreq))
    transfer = torch.exp(-2 * (torch.pi * blur) ** 2 * (row[:, None] ** 2 + column**2))
    image = torch.fft.irfft2(torch.fft.rfft2(image) * transfer, s=(size, size)) * smooth(shading, (size, size)).exp()
    return level + (1 - level) * ((image - low) / (high - low)).clamp(0, 1)


def smooth(field: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate a field on a coarse grid `(batch, 4, 4)` to `(batch, 1, height, width)` float32."""
    return F.interpolate(field[:, None].float(), size=size, mode="bicubic", align_corners=True)


def stretch(image: Tensor) -> Tensor:
    """Scale sums of ellipses `(batch, size, size)` to images `(batch, 1, size, size)` float32 in [0, 1].

    The minimum is subtracted from the foreground, then the image is divided by its maximum.
    """
    foreground = image.abs() > 1e-9  # rounding errors of the running sums are far smaller
    minimum = image.amin((1, 2), keepdim=True)
    image = torch.where(foreground, image, minimum).sub_(minimum)
    return image.div_(image.amax((1, 2), keepdim=True).clamp_(min=1e-9))[:, None].float()


def with_phase(image: Tensor, phase: Tensor) -> Tensor:
    """Give real images a smooth phase.

    Args:
        image: `(batch, 1, height, width)`.
        phase: `(batch, 4, 4)` on a coarse grid, in radians.

    Returns:
        Real and imaginary part, `(batch, 2, height, width)`.
    """
    angle = smooth(phase, (image.shape[2], image.shape[3]))
    return torch.cat([image * angle.cos(), image * angle.sin()], dim=1)


class RandomEllipses(Dataset[Item]):
    """Parameters of random phantoms; each depends on seed and index only, not on the machine or the worker."""

    def __init__(self, length: int, seed: int, variant: Variant):
        self.length, self.seed, self.variant = length, seed, variant

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng((self.seed, index))
        if self.variant != "wide":
            ellipses, look = draw_ellipses(rng, self.variant), {}
        else:
            ellipses = draw_ellipses(rng, WIDE_OF[rng.integers(len(WIDE_OF))])
            ellipses = np.pad(ellipses, ((0, MOST["disk"] - len(ellipses)), (0, 0)))
            low, high, level = rng.uniform(0, 0.4), rng.uniform(0.6, 1), rng.uniform(0, 0.4) * rng.integers(2)
            look = {
                "scanned": rng.uniform() < SCANNED,
                "look": np.array((rng.uniform(0, 1.2), low, high, level)),
                "shading": rng.uniform(0, 0.3) * rng.normal(0, 1, (4, 4)),
            }
        return look | {
            "ellipses": ellipses,
            "phase": rng.uniform(-np.pi, np.pi) + rng.normal(0, 1, (4, 4)),
            "corner": rng.uniform(size=2),
            "lot": rng.uniform(),
        }


def images_of(batch: Item, size: int, channels: Literal[1, 2]) -> Tensor:
    """Images of a batch of `RandomEllipses`, `(batch, channels, size, size)` in [0, 1]."""
    images = phantoms(batch["ellipses"], size)
    if "scanned" in batch and (chosen := batch["scanned"]).any():
        ellipses, look, shading = (batch[name][chosen] for name in ("ellipses", "look", "shading"))
        images[chosen] = scanned(ellipses, size, look, shading)
    return with_phase(images, batch["phase"]) if channels == 2 else images
