"""The ranges of numeric settings: declared in the type of an argument, checked when the object is built.

    @checked
    class Smoothing:
        def __init__(self, iterations: PositiveInt = 5, weight: Annotated[float, Range(0, 8)] = 1.0): ...

Every range is finite. Metadata of the library annotated-types would not do: jsonargparse gives them to pydantic, which
converts text to numbers and accepts NaN.
"""

import functools
import inspect
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ddip_pl.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Range:
    """The numbers that a setting may have.

    Args:
        low: the smallest.
        high: the largest.
        above: `low` itself is not one of them.
        below: `high` itself is not one of them.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        return bool(
            (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
        )

    def __repr__(self) -> str:
        low, high = (f"{end:.4g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        if not self.above and not self.below:
            return f"from {low} to {high}"
        return f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"


PositiveInt = Annotated[int, Range(1, 1_000_000)]
NonNegativeInt = Annotated[int, Range(0, 1_000_000)]
Positive = Annotated[float, Range(0, 1e12, above=True)]
NonNegative = Annotated[float, Range(0, 1e12)]
UnitInterval = Annotated[float, Range(0, 1)]
HalfOpenUnitInterval = Annotated[float, Range(0, 1, below=True)]
OpenUnitInterval = Annotated[float, Range(0, 1, above=True, below=True)]
Intensity = Annotated[float, Range(-1e12, 1e12)]
LearningRate = Annotated[float, Range(0, 1, above=True)]
NoiseLevel = Annotated[float, Range(0, 1000)]  # of data that a unit-norm operator makes of an image in [0, 1]
Power = Annotated[float, Range(0, 10, above=True)]
Pixels = Annotated[int, Range(1, 4096)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


def checked(cls: type[T]) -> type[T]:
    """Class decorator: check the constructor's arguments against the ranges and choices in their types.

    Arguments of other types are not checked. The constructor then raises `InputError` for a bad argument, in one line.
    """
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            check(f"{type(self).__name__}: {name}", value, hints(init).get(name))
        init(self, *args, **kwargs)

    cls.__init__ = checking  # type: ignore[method-assign, assignment]
    return cls


@functools.cache
def hints(init: Any) -> dict[str, Any]:
    """The types of a constructor's arguments that have ranges or choices."""
    return {name: hint for name, hint in get_type_hints(init, include_extras=True).items() if is_limited(hint)}


def is_limited(hint: Any) -> bool:
    """Whether a type has ranges or choices."""
    return get_origin(hint) in (Annotated, Literal) or any(map(is_limited, get_args(hint)))


def check(setting: str, value: Any, hint: Any) -> None:
    """Raise `InputError` unless a value has the type, and is in its ranges and choices; None as type allows all."""
    if hint is not None and not fits(value, hint):
        raise InputError(f"{setting} is {reprlib.repr(value)}; give {allowed(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type and is in its ranges and choices; NumPy's numbers and arrays count as Python's."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Annotated:
        number = Integral if parts[0] is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and value in parts[1]
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin in (tuple, Sequence):
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, Sequence) or isinstance(values, str):
            return False
        expected = parts if origin is tuple else parts * len(values)
        return len(values) == len(expected) and all(map(fits, values, expected))
    return isinstance(value, hint)


def allowed(hint: Any) -> str:
    """What a type allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return ", or ".join(map(allowed, parts))
    if origin is Annotated:
        return f"a {'whole ' * (parts[0] is int)}number {parts[1]!r}"
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (tuple, Sequence):
        return f"({', '.join(map(allowed, parts))})" if origin is tuple else f"a list, each {allowed(parts[0])}"
    return "none" if hint is NoneType else str(getattr(hint, "__name__", hint))
