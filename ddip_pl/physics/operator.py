"""The linear measurement operator `A` of `y = A x + n`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddip_pl.errors import InputError

ImageSize = int | tuple[int, int]  # height and width in pixels, one number where they are the same


class LinearOperator(nn.Module, ABC):
    """`y = A x` with `A` of unit spectral norm; `x` and `y` are batches of slices, (slices, ...).

    Where slices are coupled, measured together, the first axis of `y` is as many times shorter.

    A subclass sets `scale` and writes `forward`, `adjoint` and `pseudo_inverse`, all differentiable.

    Attributes:
        scale: spectral norm of the physical operator, divided out: physical measurement = scale * A(x).
        channels: of an image: 1 for real images, 2 for complex ones.
        coupled: number of slices that are measured together; 1 where each is measured by itself.
    """

    scale: float = 1.0
    channels: int = 1
    coupled: int = 1

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Measurement `A x` of images `x`."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Exact adjoint: `<A x, y> = <x, A^T y>`."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Direct reconstruction `A^+ y`, an approximation where the inverse has no closed form."""

    def normal(self, x: Tensor) -> Tensor:
        """`A^T A x`."""
        return self.adjoint(self(x))

    def values(self, y: Tensor) -> Tensor:
        """Number of measured values of each slice, or group of coupled ones, of the measurement `y`, `(len(y),)`."""
        return torch.full((len(y),), float(y[0].numel()), device=y.device)

    def sampled(self, y: Tensor) -> Tensor:
        """`y` with zeros where nothing is measured."""
        return y

    def visible(self, x: Tensor) -> Tensor:
        """Images `x` with zeros where no measured value depends on them."""
        return x

    def for_volume(self, slices: int) -> LinearOperator:
        """The operator of a volume of so many slices; here itself, as it serves all slices alike."""
        return self

    def noise_level(self, y: Tensor) -> float:
        """Standard deviation of the noise, estimated from the measurement `y`; here nan, as there is no way to tell."""
        return float("nan")

    def select(self, slices: slice | Sequence[int] | Tensor) -> LinearOperator:
        """The operator of some slices of the volume; here itself, as it serves all slices alike."""
        return self


def height_width(image_size: ImageSize) -> tuple[int, int]:
    """Height and width of an image.

    Raises:
        InputError: one of them is no whole number of at least 1.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(length, int) and length >= 1 for length in size):
        raise InputError(
            f"image_size is {image_size}; expected a whole number of at least 1, or one of height and width"
        )
    return size


def spectral_norm(
    normal: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float64,
    iterations: int = 200,
    tolerance: float = 1e-8,
) -> float:
    """Largest singular value of `A` by power iteration on `normal`: `x -> A^T A x`.

    Stops once the estimate changes by less than `tolerance` (relative). The start vector is the same in
    every call and leaves the global random state alone.
    """
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x /= torch.linalg.vector_norm(x)
    eigenvalue = 0.0
    for _ in range(iterations):
        x = normal(x)
        previous, eigenvalue = eigenvalue, torch.linalg.vector_norm(x).item()
        if abs(eigenvalue - previous) <= tolerance * eigenvalue:
            break
        x = x / eigenvalue
    return eigenvalue**0.5
