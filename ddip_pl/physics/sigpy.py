"""SigPy's linear operators as measurement operators, and the reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.operator import LinearOperator, Slices, accepts_arrays
from ddip_pl.physics.outside import OutsideOperator


class SigPyOperator(OutsideOperator):
    """A `sigpy.linop.Linop` of complex images, applied slice by slice.

    It is matrix-free and differentiable, computes in NumPy, and has the norm of the Linop;
    `SigPyOperator(...).normalised()` has unit norm. Images have 2 channels, real and imaginary part.

    Args:
        linop: from images `(height, width)`, or `(1, height, width)`.
        slices: of the volume.

    Raises:
        InputError: the Linop does not take such images.
    """

    channels = 2

    def __init__(self, linop: Any, slices: int = 1):
        shape = tuple(linop.ishape)
        if len(shape) < 2 or any(length > 1 for length in shape[:-2]):
            raise InputError(f"{type(linop).__name__} takes arrays of shape {shape}; expected (height, width)")
        super().__init__((slices, *shape[-2:]))
        self.linop = linop

    def select(self, slices: Slices) -> LinearOperator:
        return SigPyOperator(self.linop, len(torch.arange(self.shape[0])[slices]))

    def measure(self, x: Tensor) -> Tensor:
        """`A x`, `(slices, *oshape)`, complex, without a graph."""
        return self.apply_to(self.linop, to_complex(x.detach()))

    def back_project(self, y: Tensor) -> Tensor:
        """`A^T y` without a graph."""
        return to_channels(self.apply_to(self.linop.H, y.detach()).reshape(len(y), *self.shape[1:]))

    def apply_to(self, linop: Any, values: Tensor) -> Tensor:
        """A Linop of each slice."""
        each = values.reshape(len(values), *linop.ishape).numpy(force=True)
        return torch.from_numpy(np.stack([linop(one) for one in each])).to(values)

    def extra_repr(self) -> str:
        return f"{type(self.linop).__name__}, shape={self.shape}"


def to_complex(x: Tensor) -> Tensor:
    """Images `(slices, 2, height, width)` as complex ones, `(slices, height, width)`."""
    return torch.view_as_complex(x.movedim(1, -1).contiguous())


def to_channels(x: Tensor) -> Tensor:
    """The inverse of `to_complex`."""
    return torch.view_as_real(x).movedim(-1, 1).contiguous()


def to_sigpy(operator: LinearOperator) -> Any:
    """The operator as a `sigpy.linop.Linop` of complex arrays.

    It takes volumes `(slices, height, width)`, whose real part alone is measured if the operator has one channel.
    """
    from sigpy.linop import Linop

    real, complex_values = operator.channels == 1, operator(operator.zeros()).is_complex()

    @accepts_arrays
    def measure(self: LinearOperator, x: Tensor) -> Tensor:
        return self(x.real[:, None] if real else to_channels(x))

    @accepts_arrays
    def back_project(self: LinearOperator, y: Tensor) -> Tensor:
        x = self.adjoint(y if complex_values else y.real)
        return x[:, 0].to(y.dtype) if real else to_complex(x)

    class Wrapped(Linop):  # type: ignore[misc]
        """`A`, or `A^T` if `back`."""

        def __init__(self, back: bool):
            self.back, shapes = back, (operator.range, operator.shape)
            super().__init__(*(shapes if not back else reversed(shapes)))

        def _apply(self, values: np.ndarray) -> np.ndarray:
            found = (back_project if self.back else measure)(operator, values.astype(np.complex64))
            return np.asarray(found, np.complex64)

        def _adjoint_linop(self) -> Linop:
            return Wrapped(not self.back)

    return Wrapped(back=False)
