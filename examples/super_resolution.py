"""A custom operator: an image measured by a detector with coarse pixels."""

import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import LinearOperator
from ddip_pl.physics.operator import Shape
from ddip_pl.settings import PositiveInt, checked


@checked
class SuperResolution(LinearOperator):
    """`A x`: means over squares of `factor` x `factor` pixels, times `factor`, so that `||A|| = 1`.

    The rows of `A` are orthonormal, `A A^T = I`, so the pseudo-inverse is the adjoint: it repeats the means. Only
    `forward` is required; the other methods are exact or faster versions of what `LinearOperator` derives from it.

    Args:
        shape: of the volume: `(slices, height, width)`.
        factor: pixels along each side of a square; measurements are `(slices, 1, height / factor, width / factor)`.

    Raises:
        InputError: the squares do not fill the images.
    """

    def __init__(self, shape: Shape, factor: PositiveInt = 4):
        super().__init__(shape)
        _, height, width = self.shape
        if height % factor or width % factor:
            raise InputError(f"factor {factor} does not divide {height} x {width} pixels; give one that does")
        self.factor = factor
        self.norm = 1.0
        self.scale = 1 / factor  # of the detector, which measures the means themselves

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return repeat(y, "n c h w -> n c (h p) (w q)", p=self.factor, q=self.factor) / self.factor

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)
