"""What an iterative method tells of itself, one step after the other."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """A diffusion step, or an iteration of a baseline.

    Attributes:
        images: `(slices, channels, height, width)` with padding, by name: the `estimate` and, where there is a prior,
            its mean `x0_hat`.
        figures: of this step, by name: its timestep `t`, relative data `residual`, losses of the adaptation.
    """

    images: Mapping[str, Tensor]
    figures: Mapping[str, float]
