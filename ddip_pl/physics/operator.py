"""The linear measurement operator `A` of `y = A x + n`."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, wraps
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddip_pl.errors import InputError
from ddip_pl.settings import Pixels, PositiveInt, check, checked
from ddip_pl.solvers.cg import conjugate_gradient

Shape = tuple[PositiveInt, Pixels, Pixels]  # of a volume: slices, height and width in pixels
ImageSize = Pixels | tuple[Pixels, Pixels]  # height and width in pixels, or one number for both
Slices = slice | Sequence[int] | Tensor  # selects some slices
Description = dict[str, Any]  # numbers, strings and arrays by name

UNIT = 1e-2  # a norm this close to 1 counts as 1
EXACT = 1e-4  # relative errors below this are float32 rounding
TINY = torch.finfo(torch.float32).tiny


def accepts_arrays(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Let a method of one tensor also take a NumPy array; it then returns an array in the operator's precision."""

    @wraps(method)
    def call(self: LinearOperator, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return method(self, x)
        precision = self.like.dtype.to_complex() if np.iscomplexobj(x) else self.like.dtype
        tensor = torch.from_numpy(np.array(x, order="C")).to(self.like.device, precision)
        return method(self, tensor).numpy(force=True)

    return call


@checked
class LinearOperator(nn.Module, ABC):
    """`y = A x` for volumes `x (slices, channels, height, width)`; `y` is `(slices, ...)`.

    A subclass implements `forward`. The adjoint comes from automatic differentiation, the pseudo-inverse from conjugate
    gradients and the norm from power iteration, unless the subclass has something faster. Everything is differentiable.

    Slices are a batch axis: an operator that treats all slices the same takes any number of them. Slices that are
    measured together are coupled; the first axis of `y` is then shorter by the factor `coupled`.

    The operators of this package have unit spectral norm; `A.normalised()` rescales any other operator to it.
    `A(x)`, `A.adjoint(y)`, `A.T(y)` and `A.pseudo_inverse(y)` take tensors or NumPy arrays and return the same.

    Args:
        shape: of the volume: `(slices, height, width)`.

    Attributes:
        shape: see above.
        channels: 1 for real images, 2 for complex ones (real and imaginary part).
        coupled: number of slices that are measured together; 1 if each is measured on its own.
        scale: factor divided out of the physical operator: physical measurement = scale * A(x).
        iterations: conjugate-gradient steps of the pseudo-inverse; more of them amplify noise.
        per_slice: names of the buffers whose first axis is the slices, or has length 1 if all slices share the buffer.
        kind: name of the operator in files; empty if there is no file layout.
        axes: names of the axes of the measured data in files, slices first.

    Raises:
        InputError: the shape is not that of a volume.
    """

    channels: int = 1
    coupled: int = 1
    scale: float = 1.0
    iterations: int = 20
    per_slice: ClassVar[tuple[str, ...]] = ()
    kind: str = ""
    axes: tuple[str, ...] = ()

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = volume_shape(shape)
        self.register_buffer("empty", torch.empty(0), persistent=False)  # follows `.to`, whatever else there is

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in {"adjoint", "pseudo_inverse"} & cls.__dict__.keys():
            setattr(cls, name, accepts_arrays(cls.__dict__[name]))

    @accepts_arrays
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Measurement `A x` of images `x`."""

    @accepts_arrays
    def adjoint(self, y: Tensor) -> Tensor:
        """Exact adjoint `A^T y`: `<A x, y> = <x, A^T y>`, in the real part if `y` is complex."""
        differentiable = torch.is_grad_enabled() and y.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = self.like.new_zeros(len(y) * self.coupled, *self.domain[1:]).requires_grad_()
            return torch.autograd.grad(self(x), x, y, create_graph=differentiable)[0]

    @accepts_arrays
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Direct reconstruction `A^+ y`: by default a few conjugate-gradient steps on `A^T A x = A^T y` from 0."""
        return self.solve(self.adjoint(y), self.iterations)

    def normal(self, x: Tensor) -> Tensor:
        """`A^T A x`."""
        return self.adjoint(self(x))

    def solve(
        self,
        b: Tensor,
        iterations: int,
        *,
        damping: float = 0.0,
        tolerance: float = 0.0,
    ) -> Tensor:
        """Solve `(A^T A + damping I) x = b` by conjugate gradients from 0, each slice (or coupled group) on its own.

        Args:
            b: `(slices, channels, height, width)`.
            iterations: maximum number.
            damping: weight of the identity.
            tolerance: see `conjugate_gradient`.
        """
        normal = (lambda x: self.normal(x) + damping * x) if damping else self.normal
        return conjugate_gradient(normal, b, iterations, tolerance, self.coupled)

    # --- spaces ---------------------------------------------------------------------------------------------------

    @property
    def domain(self) -> tuple[int, ...]:
        """Shape of `x`."""
        slices, height, width = self.shape
        return slices, self.channels, height, width

    @cached_property
    def range(self) -> tuple[int, ...]:
        """Shape of `y`."""
        with torch.no_grad():
            return tuple(self(self.zeros()).shape)

    def zeros(self) -> Tensor:
        """A volume of zeros in the operator's precision, on its device."""
        return self.like.new_zeros(self.domain)

    @property
    def like(self) -> Tensor:
        """An empty tensor in the operator's precision, on its device."""
        *_, last = (tensor for tensor in chain(self.buffers(), self.parameters()) if tensor.is_floating_point())
        return last.detach().new_empty(0)

    def expect(self, tensor: Tensor, shape: Sequence[int]) -> None:
        """Check the shape of a volume or a measurement; the number of slices is free if all slices are treated alike.

        Raises:
            InputError: the tensor has another shape.
        """
        fixed = self.coupled > 1 or any(len(getattr(self, name)) > 1 for name in self.per_slice)
        if tensor.shape[1:] != tuple(shape[1:]) or (fixed and len(tensor) != shape[0]):
            expected = ", ".join(map(str, (shape[0] if fixed else "slices", *shape[1:])))
            raise InputError(f"expected a tensor of shape ({expected}), got {tuple(tensor.shape)}")

    @cached_property
    def norm(self) -> float:
        """Spectral norm `||A||`, to about 0.1 %."""
        zeros = self.zeros()
        with torch.no_grad():
            return spectral_norm(lambda x: self.normal(x.to(zeros.device)), zeros.shape, zeros.dtype, tolerance=1e-6)

    @cached_property
    def gain(self) -> float:
        """Root mean square of the singular values, `||A||_F / sqrt(voxels)`, estimated from one random volume."""
        zeros = self.zeros()
        with torch.no_grad():
            x = torch.randn(zeros.shape, dtype=zeros.dtype, generator=torch.Generator().manual_seed(0))
            return float(self(x.to(zeros.device)).norm()) / zeros.numel() ** 0.5

    # --- other operators ------------------------------------------------------------------------------------------

    @property
    def T(self) -> LinearOperator:
        """The adjoint as an operator."""
        return Adjoint(self)

    def __matmul__(self, first: LinearOperator) -> LinearOperator:
        """`(A @ B)(x) = A(B(x))`."""
        return Composition(self, first)

    def stack(self, other: LinearOperator) -> LinearOperator:
        """Both measurements of the same volume, flattened and concatenated along one axis of values."""
        return Stack(self, other)

    def normalised(self) -> LinearOperator:
        """The operator with unit spectral norm: itself if its norm is already 1, otherwise divided by its norm.

        Raises:
            InputError: the norm is 0.
        """
        if not self.norm > 0:
            raise InputError(f"{type(self).__name__} measures nothing: its norm is {self.norm:g}")
        return self if abs(self.norm - 1) <= UNIT else Scaled(self, self.norm)

    def select(self, slices: Slices) -> LinearOperator:
        """The operator of some slices of the volume."""
        index = torch.arange(self.shape[0])[slices]
        if index.ndim != 1:
            raise InputError(f"slices chosen by {slices!r}; give a slice, a list or a tensor of indices")
        kept: dict[int, Any] = {id(tensor): tensor for tensor in chain(self.buffers(), self.parameters())}
        for name in self.per_slice:
            buffer = getattr(self, name)
            kept[id(buffer)] = buffer if len(buffer) == 1 else buffer[slices]
        for child in self.children():
            if isinstance(child, LinearOperator) and child.shape[0] == self.shape[0]:
                kept[id(child)] = child.select(slices)
        part = copy.deepcopy(self, kept)  # takes the objects in `kept` from there and copies the others
        part.shape = (len(index), *self.shape[1:])
        part.coupled = min(self.coupled, len(index))
        part.__dict__.pop("range", None)
        return part

    def batches(self, size: int) -> tuple[Tensor, ...]:
        """Indices of the slices in batches of at most `size`; coupled slices come all at once."""
        return torch.arange(self.shape[0]).split(size if self.coupled == 1 else self.shape[0])

    def per_image(self, values: Tensor) -> Tensor:
        """One value per slice (or coupled group), reshaped to `(slices, 1, 1, 1)` to multiply images with."""
        return values.repeat_interleave(self.coupled).view(-1, 1, 1, 1)

    # --- what is measured -----------------------------------------------------------------------------------------

    def values(self, y: Tensor) -> Tensor:
        """Number of measured values in `y` for each slice or coupled group, `(len(y),)`."""
        return torch.full((len(y),), float(y[0].numel()), device=y.device)

    def sampled(self, y: Tensor) -> Tensor:
        """`y`, set to zero where nothing is measured."""
        return y

    def visible(self, x: Tensor) -> Tensor:
        """Images `x`, set to zero where no measured value depends on them."""
        return x

    def readouts(self) -> Tensor:
        """Which values are measured together: one label for each value of a slice (or coupled group), `range[1:]`.

        Labels are whole numbers in the order of a scan or of k-space, the same for values that belong together, such as
        those of one projection. Values that are not measured, or that `split` must not hide, have the label -1. By
        default, every value has a label of its own.
        """
        measured = (self.sampled(self.like.new_ones(self.range)) != 0).any(0)
        return torch.where(measured, torch.arange(measured.numel(), device=measured.device).view(measured.shape), -1)

    def noise_level(self, y: Tensor) -> float:
        """Standard deviation of the noise, estimated from the measurement `y`; nan if it cannot be estimated."""
        return float("nan")

    # --- files ----------------------------------------------------------------------------------------------------

    def describe(self, pixel: tuple[float, float]) -> Description:
        """What a file stores about the operator, in mm and radians; `from_description` rebuilds the operator from it.

        Args:
            pixel: height and width of a pixel, in mm.

        Raises:
            InputError: this operator has no file layout, or none for such pixels.
        """
        raise InputError(
            f"no file layout for measurements by {type(self).__name__}; define kind, describe and from_description"
        )

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> LinearOperator:
        """The operator that a file describes.

        Args:
            description: see `describe`.
            data: shape of the measured data, with axes `axes`.

        Raises:
            InputError: an entry is missing, out of range or does not fit the data.
        """
        raise InputError(f"no file layout for measurements by {cls.__name__}")

    def unit(self, pixel: tuple[float, float]) -> float:
        """Factor that converts `y` to the scanner's units: image units, times mm for line integrals."""
        return self.scale

    # --- checks ---------------------------------------------------------------------------------------------------

    def check(self, seed: int = 0) -> Check:
        """Check that the operator is linear and that its adjoint and its gradient are exact.

        Args:
            seed: of the random test volumes and measurement.

        Returns:
            The norm and the relative errors.

        Raises:
            InputError: `forward` is not linear or not differentiable, the adjoint is not its transpose, or more slices
                are measured together than `coupled` says.
        """
        generator = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

        x, u = noise(self.zeros()).requires_grad_(), noise(self.zeros())
        energy = 0.5 * self(x).abs().square().sum()
        if not energy.requires_grad:
            raise InputError(f"{type(self).__name__} is not differentiable; use PyTorch functions in forward")
        (gradient,) = torch.autograd.grad(energy, x)
        with torch.no_grad():
            ax, au = self(x), self(u)
            linearity = relative(self(2 * x + u), 2 * ax + au)
            y = noise(ax)
            y = ax / ax.norm().clamp(min=TINY) + y / y.norm()  # pure noise is nearly orthogonal to everything
            back = self.adjoint(y)
            if back.shape != x.shape:
                raise InputError(
                    f"{type(self).__name__} turns {tuple(x.shape)} into {tuple(ax.shape)}, and its adjoint turns that "
                    f"into {tuple(back.shape)}; set coupled to the number of slices that are measured together"
                )
            difference = abs(inner(ax, y) - inner(x, back))
            adjointness = difference / max(float(ax.norm() * y.norm()), TINY)
            wrong = relative(gradient, self.normal(x))
            mixing = 0.0
            if len(ax) * self.coupled == len(x):  # of every second group of slices alone, the others measure nothing
                chosen = (torch.arange(len(ax), device=ax.device) % 2 == 0).float()
                alone = self(x * self.per_image(chosen))
                mixing = relative(alone, ax * chosen.view(-1, *[1] * (ax.ndim - 1)))
        for error, advice in (
            (linearity, "is not linear: A(2 x + u) and 2 A(x) + A(u) differ"),
            (adjointness, "has a wrong adjoint (leave it out to use automatic differentiation): it is off"),
            (wrong, "has a wrong gradient (that of 1/2 ||A x||^2 is A^T A x): it is off"),
            (mixing, "measures slices together; set coupled to their number: what should be 0 is off"),
        ):
            if not error < EXACT:
                raise InputError(f"{type(self).__name__} {advice} by {error:.1e} of its size; expected below {EXACT:g}")
        return Check(self.norm, linearity, adjointness, wrong)


class Check(NamedTuple):
    """Result of `LinearOperator.check`.

    Attributes:
        norm: spectral norm.
        linearity: relative difference of `A (2 x + u)` and `2 A x + A u`.
        adjointness: `|<A x, y> - <x, A^T y>| / (||A x|| ||y||)`.
        gradient: relative error of the gradient of `1/2 ||A x||^2`, which is `A^T A x`.
    """

    norm: float
    linearity: float
    adjointness: float
    gradient: float


def relative(a: Tensor, b: Tensor) -> float:
    """`||a - b|| / ||b||`."""
    return float((a - b).norm() / b.norm().clamp(min=TINY))


def inner(a: Tensor, b: Tensor) -> float:
    """Real part of `<a, b>`, summed in double precision."""
    double = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return float(torch.vdot(a.to(double).flatten(), b.to(double).flatten()).real)


class Adjoint(LinearOperator):
    """`A^T` as an operator, from measurements to images; see `LinearOperator.T`."""

    def __init__(self, operator: LinearOperator):
        super().__init__(operator.shape)
        self.operator = operator
        self.scale = operator.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)

    @property
    def T(self) -> LinearOperator:
        return self.operator

    @property
    def domain(self) -> tuple[int, ...]:
        return self.operator.range

    @cached_property
    def range(self) -> tuple[int, ...]:
        return self.operator.domain

    def zeros(self) -> Tensor:
        return self.operator(self.operator.zeros())

    @cached_property
    def norm(self) -> float:
        return self.operator.norm


class Composition(LinearOperator):
    """`A B x`; see `LinearOperator.__matmul__`."""

    def __init__(self, second: LinearOperator, first: LinearOperator):
        if first.range[1:] != second.domain[1:]:
            raise InputError(
                f"{type(second).__name__} takes {second.domain}, {type(first).__name__} returns {first.range}; "
                "give operators whose shapes match"
            )
        super().__init__(first.shape)
        self.second, self.first = second, first
        self.channels, self.coupled = first.channels, min(first.coupled * second.coupled, len(first.zeros()))
        self.scale = first.scale * second.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(self.second.adjoint(y))

    @property
    def domain(self) -> tuple[int, ...]:
        return self.first.domain

    def zeros(self) -> Tensor:
        return self.first.zeros()

    def values(self, y: Tensor) -> Tensor:
        return self.second.values(y)

    def sampled(self, y: Tensor) -> Tensor:
        return self.second.sampled(y)

    def readouts(self) -> Tensor:
        return self.second.readouts()

    def noise_level(self, y: Tensor) -> float:
        return self.second.noise_level(y)

    def visible(self, x: Tensor) -> Tensor:
        return self.first.visible(x)


class Stack(LinearOperator):
    """`(A x, B x)` as `(slices, values)`; see `LinearOperator.stack`."""

    def __init__(self, first: LinearOperator, second: LinearOperator):
        if first.domain != second.domain or first.coupled != second.coupled:
            raise InputError(
                f"volumes of {type(first).__name__} are {first.domain}, of {type(second).__name__} {second.domain}; "
                "give operators of the same volume"
            )
        super().__init__(first.shape)
        self.first, self.second = first, second
        self.channels, self.coupled = first.channels, first.coupled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in (self.first, self.second)], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        first, second = self.split(y)
        return self.first.adjoint(first) + self.second.adjoint(second)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The two measurements, each in its own shape."""
        shapes = self.first.range[1:], self.second.range[1:]
        first, second = y.split([math.prod(shape) for shape in shapes], dim=1)
        return first.unflatten(1, shapes[0]), second.unflatten(1, shapes[1])

    def values(self, y: Tensor) -> Tensor:
        first, second = self.split(y)
        return self.first.values(first) + self.second.values(second)

    def sampled(self, y: Tensor) -> Tensor:
        first, second = self.split(y)
        return torch.cat([self.first.sampled(first).flatten(1), self.second.sampled(second).flatten(1)], dim=1)

    def visible(self, x: Tensor) -> Tensor:
        return torch.where((self.first.visible(x) != 0) | (self.second.visible(x) != 0), x, 0)

    def readouts(self) -> Tensor:
        first, second = (part.readouts().flatten() for part in (self.first, self.second))
        return torch.cat([first, torch.where(second < 0, -1, second + first.max() + 1)])

    def noise_level(self, y: Tensor) -> float:
        """Root mean square over the values of both."""
        parts = list(zip((self.first, self.second), self.split(y), strict=True))
        energy = sum(part.noise_level(one) ** 2 * float(part.values(one).sum()) for part, one in parts)
        return float((energy / sum(float(part.values(one).sum()) for part, one in parts)) ** 0.5)


class Derived(LinearOperator):
    """An operator that changes the values of another one, each by itself.

    Args:
        operator: the other one.
    """

    def __init__(self, operator: LinearOperator):
        super().__init__(operator.shape)
        self.operator = operator
        self.channels, self.coupled = operator.channels, operator.coupled
        self.scale, self.iterations = operator.scale, operator.iterations

    def values(self, y: Tensor) -> Tensor:
        return self.operator.values(y)

    def sampled(self, y: Tensor) -> Tensor:
        return self.operator.sampled(y)

    def visible(self, x: Tensor) -> Tensor:
        return self.operator.visible(x)

    def readouts(self) -> Tensor:
        return self.operator.readouts()

    def noise_level(self, y: Tensor) -> float:
        return self.operator.noise_level(y)


class Scaled(Derived):
    """`A x / divisor`; see `LinearOperator.normalised`."""

    def __init__(self, operator: LinearOperator, divisor: float):
        super().__init__(operator)
        self.divisor, self.scale = divisor, divisor * operator.scale
        self.kind, self.axes = operator.kind, operator.axes

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x) / self.divisor

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y) / self.divisor

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.operator.pseudo_inverse(self.divisor * y)

    @cached_property
    def norm(self) -> float:
        return self.operator.norm / self.divisor

    def noise_level(self, y: Tensor) -> float:
        return self.operator.noise_level(self.divisor * y) / self.divisor

    def describe(self, pixel: tuple[float, float]) -> Description:
        return self.operator.describe(pixel)

    def unit(self, pixel: tuple[float, float]) -> float:
        return self.divisor * self.operator.unit(pixel)


def volume_shape(shape: Sequence[int]) -> Shape:
    """Slices, height and width of a volume.

    Raises:
        InputError: one of them is not a whole number of at least 1, or is too large.
    """
    check("shape", shape, Shape)
    slices, height, width = map(int, shape)
    return slices, height, width


def height_width(image_size: ImageSize) -> tuple[int, int]:
    """Height and width of an image.

    Raises:
        InputError: one of them is not a whole number of at least 1, or is too large.
    """
    check("image_size", image_size, ImageSize)
    height, width = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    return int(height), int(width)


def spectral_norm(
    normal: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float64,
    iterations: int = 200,
    tolerance: float = 1e-8,
) -> float:
    """Largest singular value of `A` by power iteration on `normal`: `x -> A^T A x`.

    Stops once the estimate changes by less than `tolerance` (relative). Every call uses the same start vector and
    leaves the global random state alone.
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
