"""An operator of one's own: an image seen by a detector with coarse pixels."""

import torch.nn.functional as F
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import LinearOperator


class SuperResolution(LinearOperator):
    """`A x`: means over squares of `factor` x `factor` pixels, times `factor`, so that `||A|| = 1`.

    The rows of `A` are orthonormal, `A A^T = I`: the pseudo-inverse is the adjoint, and repeats the means.

    Args:
        image_size: height and width of the image `(slices, 1, image_size, image_size)`, in pixels.
        factor: measured are `(slices, 1, image_size / factor, image_size / factor)`.

    Raises:
        InputError: the squares do not fill the image.
    """

    def __init__(self, image_size: int, factor: int = 4):
        super().__init__()
        if factor < 1 or image_size % factor:
            raise InputError(f"factor {factor} does not divide image_size {image_size}; give one that does")
        self.image_size, self.factor = image_size, factor
        self.scale = 1 / factor  # of the detector, which sees means

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)
