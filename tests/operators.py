"""All operators by name, and helpers to test each of them."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import random, smooth_maps
from super_resolution import SuperResolution
from torch import Tensor

from ddip_pl.physics import (
    SENSE,
    ConeBeamCT,
    EquispacedLines,
    FanBeamCT,
    LinearOperator,
    NonCartesianMRI,
    ParallelBeamCT,
    Radial,
    RandomLines,
    RandomPoints,
    SingleCoilMRI,
    Spiral,
)
from ddip_pl.physics.operator import Shape

SLICES = 3


def half_masks(shape: Shape) -> Tensor:
    """One mask per slice, without every second, third or fourth line."""
    lines = torch.ones(shape, dtype=torch.bool)
    for i in range(len(lines)):
        lines[i, :, :: i + 2] = False
    return lines


def without_pairs(shape: Shape) -> Tensor:
    """A mask with only one of each pair of positions k and -k, and without the centre."""
    _, height, width = shape
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[1 : height // 2, 1:] = True
    return mask


class Blur(LinearOperator):
    """An operator that defines only `forward`; neither symmetric nor of unit norm."""

    kernel: Tensor

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.register_buffer("kernel", random(1, 1, 3, 2, seed=3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel)


class Brightness(LinearOperator):
    """Another one, with a factor for each slice."""

    per_slice = ("factors",)
    factors: Tensor

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.register_buffer("factors", torch.arange(1.0, 1 + shape[0]).view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factors * x


def sense_with_maps(shape: Shape) -> SENSE:
    return SENSE(shape, EquispacedLines(1.5, centre=0.2), smooth_maps(*shape[1:], slices=SLICES))


# Constructors of operators from a shape, by name. Add new modalities here.
CT: dict[str, Callable[[Shape], LinearOperator]] = {
    "CT": lambda shape: ParallelBeamCT(shape, 7),
    "CT, limited angle": lambda shape: ParallelBeamCT(shape, 6, angular_range=1.5),
    "CT, fan beam": lambda shape: FanBeamCT(shape, 9, iterations=3),
    "CT, cone beam": lambda shape: ConeBeamCT(shape, 7, iterations=3),
}
CARTESIAN: dict[str, Callable[[Shape], LinearOperator]] = {
    "single coil, real": lambda shape: SingleCoilMRI(shape, RandomPoints(2)),
    "single coil, real, no pairs": lambda shape: SingleCoilMRI(shape, without_pairs(shape)),
    "single coil, real, masks": lambda shape: SingleCoilMRI(shape, half_masks(shape)),
    "single coil, complex": lambda shape: SingleCoilMRI(shape, RandomPoints(2), complex_image=True),
    "single coil, complex, masks": lambda shape: SingleCoilMRI(shape, half_masks(shape), complex_image=True),
    "SENSE": lambda shape: SENSE(shape, RandomLines(1.5, centre=0.2), smooth_maps(*shape[1:])),
    "SENSE, masks": lambda shape: SENSE(shape, half_masks(shape), smooth_maps(*shape[1:])),
    "SENSE, maps": sense_with_maps,
    "SENSE, masks and maps": lambda shape: SENSE(shape, half_masks(shape), smooth_maps(*shape[1:], slices=SLICES)),
}
for name in "single coil, real", "single coil, real, no pairs", "single coil, complex", "SENSE, masks and maps":
    make = CARTESIAN[name]  # odd by even sizes and the reverse
    CARTESIAN[f"{name}, not square"] = lambda shape, make=make: make((*shape[:2], shape[2] - 3))  # type: ignore[misc]
NON_CARTESIAN: dict[str, Callable[[Shape], LinearOperator]] = {
    "radial": lambda shape: NonCartesianMRI(shape, Radial(shape[1])),
    "radial, coils": lambda shape: NonCartesianMRI(shape, Radial(shape[1]), smooth_maps(*shape[1:])),
    "spiral, maps": lambda shape: NonCartesianMRI(shape, Spiral(3, 1.5), smooth_maps(*shape[1:], slices=SLICES)),
}
OWN: dict[str, Callable[[Shape], LinearOperator]] = {
    "super-resolution": lambda shape: SuperResolution(shape, 4 if shape[1] % 4 == 0 else shape[1]),
    "blur": Blur,
    "brightness": Brightness,
}
COMBINED: dict[str, Callable[[Shape], LinearOperator]] = {
    "blur @ brightness": lambda shape: Blur(shape) @ Brightness(shape),
    "CT @ brightness": lambda shape: ParallelBeamCT(shape, 7) @ Brightness(shape),
    "SENSE.T @ SENSE": lambda shape: (sense := sense_with_maps(shape)).T @ sense,
    "SENSE + SENSE": lambda shape: sense_with_maps(shape).stack(CARTESIAN["SENSE, masks"](shape)),
    "blur + CT": lambda shape: Blur(shape).stack(ParallelBeamCT(shape, 7)),
    "blur, normalised": lambda shape: Blur(shape).normalised(),
    "blur + brightness, normalised": lambda shape: Blur(shape).stack(Brightness(shape)).normalised(),
}
ADJOINT: dict[str, Callable[[Shape], LinearOperator]] = {
    "blur.T": lambda shape: Blur(shape).T,
    "CT.T": lambda shape: ParallelBeamCT(shape, 7).T,
    "SENSE.T": lambda shape: sense_with_maps(shape).T,
}
MRI = CARTESIAN | NON_CARTESIAN
BUILT_IN = CT | MRI
FORWARD = BUILT_IN | OWN | COMBINED  # from images to measurements
OPERATORS = FORWARD | ADJOINT
COUPLED = ["CT, cone beam"]
UNCOUPLED = {name: make for name, make in OPERATORS.items() if name not in COUPLED}
PER_SLICE = [name for name in OPERATORS if "maps" in name or "masks" in name or "brightness" in name]
# The pseudo-inverse of the others uses conjugate gradients, which are not linear.
DIRECT = [name for name in OPERATORS if name in ("CT", "CT, limited angle", "super-resolution") or "single" in name]
SIZES = pytest.mark.parametrize("size", [12, 13])


def table(operators: dict[str, Callable[[Shape], LinearOperator]]) -> Any:
    return pytest.mark.parametrize("make", operators.values(), ids=operators.keys())


def volume(size: int) -> Shape:
    return SLICES, size, size


def random_pair(operator: LinearOperator, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random volume and a random measurement."""
    x = random(*operator.domain, dtype=dtype.to_complex() if operator.zeros().is_complex() else dtype, seed=seed)
    y = operator(x)
    return x, random(*y.shape, dtype=y.dtype, seed=seed + 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product; complex numbers count as pairs of real ones."""
    return (a * b.conj()).sum().real


def real(values: Tensor) -> Tensor:
    """Complex values as pairs of real ones, one row per slice or group of coupled slices."""
    return (torch.view_as_real(values) if values.is_complex() else values).flatten(1)


def dense(operator: LinearOperator) -> Tensor:
    """The real matrix of each slice or group of coupled slices, `(systems, values, pixels)`."""
    shape = operator.coupled, *operator.domain[1:]
    units = [1, 1j] if operator.zeros().is_complex() else [1]
    columns = []
    for pixel, unit in itertools.product(torch.eye(math.prod(shape), dtype=torch.float64), units):
        x = (unit * pixel).view(shape).repeat(SLICES // operator.coupled, *[1] * (len(shape) - 1))
        columns.append(real(operator(x)))
    return torch.stack(columns, dim=2)
