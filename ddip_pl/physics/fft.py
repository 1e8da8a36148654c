"""The Fourier transform of MRI: orthonormal, with the origin in the middle of image and k-space (`n // 2`)."""

import cmath
import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

PLANE = (-2, -1)


def fft(image: Array, axes: tuple[int, ...] = PLANE) -> Array:
    """K-space of an image, along `axes`."""
    library: Any = np if isinstance(image, np.ndarray) else torch
    shifted = library.fft.ifftshift(image, axes)
    return library.fft.fftshift(library.fft.fftn(shifted, None, axes, "ortho"), axes)


def ifft(kspace: Array, axes: tuple[int, ...] = PLANE) -> Array:
    """Image of k-space, along `axes`; both the inverse and the adjoint of `fft`."""
    library: Any = np if isinstance(kspace, np.ndarray) else torch
    shifted = library.fft.ifftshift(kspace, axes)
    return library.fft.fftshift(library.fft.ifftn(shifted, None, axes, "ortho"), axes)


def phases(height: int, width: int) -> tuple[Tensor, complex]:
    """`D` and `c` such that `fft(x) = c D FFT(D x)`: a shift in one domain is a phase in the other.

    An operator that folds them into its mask and maps needs no shifts.

    Returns:
        The diagonal of `D`, `(height, width)` complex128, and the number `c`.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) * (n // 2) / n for n in (height, width))
    diagonal = torch.exp(2j * math.pi * (rows[:, None] + columns))
    return diagonal, cmath.exp(-2j * math.pi * sum((n // 2) ** 2 / n for n in (height, width)))
