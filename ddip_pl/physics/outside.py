"""Operators that compute outside PyTorch, without a graph, and are differentiable all the same."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ddip_pl.physics.operator import LinearOperator


class OutsideOperator(LinearOperator):
    """A linear operator of another library; a subclass implements `measure` and its adjoint, `back_project`."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Apply.apply(x, self, False)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = _Apply.apply(y, self, True)
        return x

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """`A x` without a graph."""

    @abstractmethod
    def back_project(self, y: Tensor) -> Tensor:
        """`A^T y` without a graph."""


class _Apply(torch.autograd.Function):
    """`A`, or `A^T` if `back`; each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, operator: OutsideOperator, back: bool) -> Tensor:
        ctx.operator, ctx.back = operator, back
        return operator.back_project(tensor) if back else operator.measure(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(grads[0], ctx.operator, not ctx.back), None, None
