"""Reconstruction with blocks of low rank across slices (Zhang, Pauly & Levesque 2015)."""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from ddip_pl.baselines.baseline import Baseline, absolute
from ddip_pl.baselines.spinning import spinning_fista
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import Positive, PositiveInt, checked

BLOCK = 8  # rows and columns of a block


def shrink_singular_values(x: Tensor, threshold: float) -> Tensor:
    """Proximal operator of `threshold sum ||block||_*` for images `(slices, channels, height, width)`.

    A block is a matrix of slices by pixels of a square, complex for two channels. At the lower and right border, blocks
    are smaller.
    """
    height, width = x.shape[-2:]
    padded = pad(x, (0, -width % BLOCK, 0, -height % BLOCK))  # columns of zeros change no singular value
    image = rearrange(padded, "s c h w -> s h w c").contiguous()
    values = torch.view_as_complex(image) if x.shape[1] == 2 else image[..., 0]
    blocks = rearrange(values, "s (i h) (j w) -> i j s (h w)", h=BLOCK, w=BLOCK)
    left, singular, right = torch.linalg.svd(blocks, full_matrices=False)
    shrunk = (left * (singular - threshold).clamp(min=0)[..., None, :]) @ right
    values = rearrange(shrunk, "i j s (h w) -> s (i h) (j w)", h=BLOCK)
    image = torch.view_as_real(values) if x.shape[1] == 2 else values[..., None]
    return rearrange(image, "s h w c -> s c h w")[..., :height, :width]


@checked
class LocallyLowRank(Baseline):
    """`min_x 1/2 ||A x - y||^2 + strength sum ||block of x||_*` over blocks of 8 x 8 pixels, across all slices.

    Neighbouring slices are alike, so a block has few singular values that matter. Solved by `spinning_fista`.

    Args:
        strength: weight of the nuclear norms, in units of `sigma_y`.
        iterations: number.
    """

    def __init__(self, strength: Positive = 1.0, iterations: PositiveInt = 200):
        super().__init__(iterations)
        self.strength = strength

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        threshold = absolute(self.strength, measurement)
        if len(measurement) == 1:
            raise InputError("LocallyLowRank compares slices, but there is only 1; give more, or use another method")
        return spinning_fista(measurement, lambda z: shrink_singular_values(z, threshold), BLOCK, self.iterations)
