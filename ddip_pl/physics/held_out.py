"""A share of a measurement held out of it, to check a reconstruction by data that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import Derived, LinearOperator


class Masked(Derived):
    """`M A x`: some of the values of an operator, with 0 in place of the others.

    Args:
        operator: `A`.
        mask: `(slices or 1, ...)` like `y`, bool; true where values are kept.
    """

    per_slice: ClassVar[tuple[str, ...]] = ("mask",)
    mask: Tensor

    def __init__(self, operator: LinearOperator, mask: Tensor):
        super().__init__(operator)
        self.register_buffer("mask", mask.to(operator.like.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.mask * y)

    def values(self, y: Tensor) -> Tensor:
        return (self.sampled(torch.ones_like(y)) != 0).flatten(1).sum(1).float()

    def sampled(self, y: Tensor) -> Tensor:
        return self.mask * self.operator.sampled(y)

    def readouts(self) -> Tensor:
        return torch.where(self.mask.any(0), self.operator.readouts(), -1)


def split(
    measurement: Measurement, share: float, seed: int = 0, together: int | None = None
) -> tuple[Measurement, Measurement]:
    """The measurement in two complementary parts.

    Whole readouts are hidden (see `LinearOperator.readouts`): one at random of each run of about `1 / share`
    neighbouring ones, so that the hidden ones are spread over all directions or frequencies.

    Args:
        measurement: of any operator.
        share: of the readouts to hide, above 0 and below 1; at least one is hidden and one kept.
        seed: of the random draw.
        together: number of neighbouring slices (or coupled groups) with the same hidden readouts; by default all.

    Returns:
        The kept part and the hidden part, each with its own operator; they add up to the measurement.

    Raises:
        InputError: the share is out of range, or there is only one readout.
    """
    if not 0 < share < 1:
        raise InputError(f"share of hidden data is {share}; give a number above 0 and below 1")
    operator, generator = measurement.operator, torch.Generator().manual_seed(seed)
    labels, together = operator.readouts(), together or len(measurement.y)
    groups = (operator.sampled(torch.ones_like(measurement.y)) != 0).split(together)
    hidden = torch.stack([hide(torch.where(group.any(0), labels, -1), share, generator) for group in groups])
    hidden = hidden.repeat_interleave(together, 0)[: len(measurement.y)]
    kept, held_out = (Masked(operator, mask) for mask in (~hidden, hidden))
    return part(measurement, kept), part(measurement, held_out)


def hide(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which values to hide, given the labels of their readouts (see `LinearOperator.readouts`).

    Raises:
        InputError: there is only one readout.
    """
    measured = labels[labels >= 0].unique()
    if len(measured) < 2:
        raise InputError(f"{len(measured)} readout cannot be split; measure at least 2")
    count = min(max(1, round(share * len(measured))), len(measured) - 1)
    ends = torch.arange(count + 1) * len(measured) // count
    chosen = ends[:-1] + (torch.rand(count, generator=generator) * ends.diff()).long()
    return torch.isin(labels, measured[chosen.to(labels.device)])


def part(measurement: Measurement, operator: Masked) -> Measurement:
    """The values of a measurement that the operator keeps."""
    return replace(measurement, y=operator.sampled(measurement.y), operator=operator)
