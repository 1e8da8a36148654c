"""Any linear ODL operator as a measurement operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.operator import LinearOperator, Shape, Slices
from ddip_pl.physics.outside import OutsideOperator


class ODLOperator(OutsideOperator):
    """A linear `odl.Operator`, applied slice by slice, or to the whole volume if its domain is a volume.

    It is matrix-free and differentiable. Its adjoint is ODL's without the weights of ODL's inner products, so
    `<A x, y> = <x, A^T y>` holds for plain sums. `check()` detects ODL operators whose own adjoint ignores the weights.
    It computes wherever ODL does and returns results on the device of its argument. It has the norm of ODL's operator;
    `ODLOperator(...).normalised()` has unit norm.

    Images are `(slices, channels, height, width)`, with 2 channels (real and imaginary part) if the domain is complex.
    Measurements are `(slices, *range)`, or `(1, *range)` for a volume.

    Args:
        operator: linear, with an adjoint, between spaces with NumPy arrays.
        shape: of the volume: `(slices, height, width)`; by default the shape of the domain, as one slice if it has two
            axes. A domain of another shape holds the pixels of a slice (or of the volume) row by row.

    Raises:
        InputError: the operator is not linear, has no adjoint, or does not fit the shape.
    """

    members: Tensor

    def __init__(self, operator: Any, shape: Shape | None = None) -> None:
        name, domain = type(operator).__name__, operator.domain
        if not operator.is_linear:
            raise InputError(f"{name} is not linear; expected a linear operator")
        if shape is None:
            if len(domain.shape) not in (2, 3):
                raise InputError(f"{name} takes arrays of shape {domain.shape}; give the shape of the volume")
            shape = (1,) * (3 - len(domain.shape)) + tuple(domain.shape)
        super().__init__(shape)
        slices, height, width = self.shape
        pixels = math.prod(domain.shape)
        if pixels not in (height * width, slices * height * width):
            raise InputError(f"{name} takes arrays of shape {domain.shape}, which do not fit volumes of {self.shape}")
        for space in domain, operator.range:
            if getattr(space, "impl", "numpy") != "numpy":
                raise InputError(f"{name} has a space of {space.impl}; expected NumPy arrays")
        try:
            back = operator.adjoint
        except NotImplementedError as error:
            raise InputError(f"{name} has no adjoint") from error
        self.operator, self.back = operator, back
        self.coupled = 1 if pixels == height * width else slices
        self.channels = 2 if domain.is_complex else 1
        self.whole = (self.coupled, *self.shape[1:])  # shape of one input of the ODL operator
        self.register_buffer("members", torch.arange(self.coupled), persistent=False)

    def select(self, slices: Slices) -> LinearOperator:
        """The operator for some slices; if slices are coupled, the others are 0."""
        _, height, width = self.shape
        if self.whole[0] == 1:
            return ODLOperator(self.operator, (len(torch.arange(self.shape[0])[slices]), height, width))
        part = ODLOperator(self.operator, self.whole)  # no deep copy: ODL's operators hold handles to other libraries
        part.members = self.members[slices]
        part.coupled = len(part.members)
        part.shape = (part.coupled, height, width)
        return part

    def extra_repr(self) -> str:
        return f"{type(self.operator).__name__}, shape={self.shape}"

    def measure(self, x: Tensor) -> Tensor:
        """`A x` without a graph."""
        groups, space = x.detach().unflatten(0, (-1, self.coupled)), self.operator.domain
        found = []
        for group in groups:
            volume = group.new_zeros(self.whole[0], *group.shape[1:]).index_copy(0, self.members.to(x.device), group)
            image = volume.movedim(1, -1).contiguous()
            values = torch.view_as_complex(image) if self.channels == 2 else image[..., 0]
            found.append(_call(self.operator, values.numpy(force=True).reshape(space.shape)))
        return _tensor(np.stack(found), x)

    def back_project(self, y: Tensor) -> Tensor:
        """`A^T y` without a graph: `W_X A* W_Y^-1 y` with the weights `W` of ODL's inner products."""
        into, outof = _weights(self.operator.domain), _weights(self.operator.range)
        found = [into * _call(self.back, values / outof) for values in y.detach().numpy(force=True)]
        images = _tensor(np.stack(found).reshape(-1, *self.whole), y)[:, self.members.to(y.device)].flatten(0, 1)
        return torch.view_as_real(images).movedim(-1, 1).contiguous() if self.channels == 2 else images[:, None]


def _call(operator: Any, values: np.ndarray) -> np.ndarray:
    space = operator.domain
    element = space.element(list(values) if hasattr(space, "parts") else np.asarray(values, space.dtype))
    result = operator(element)
    if hasattr(result, "parts"):  # of a product space
        return np.stack([np.asarray(part.asarray()) for part in result.parts])
    return np.asarray(result.asarray())


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor with the precision and device of `like`."""
    precision = like.real.dtype if like.is_complex() else like.dtype
    return torch.from_numpy(values).to(like.device, precision.to_complex() if np.iscomplexobj(values) else precision)


def _weights(space: Any) -> Any:
    """Weights of a space's inner product, as a factor for its arrays."""
    weighting = getattr(space, "weighting", None)
    weights = next((getattr(weighting, name) for name in ("const", "array") if hasattr(weighting, name)), None)
    if weights is None:
        raise InputError(f"an ODL space has a {type(weighting).__name__}; expected a weight for each value")
    if not hasattr(space, "spaces"):
        return np.asarray(weights)
    inner = [np.broadcast_to(_weights(part), part.shape) for part in space.spaces]
    return np.stack([weight * part for weight, part in zip(np.broadcast_to(weights, len(inner)), inner, strict=True)])
