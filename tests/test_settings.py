"""Every numeric setting of every class that a command can build has a range, and its constructor refuses the rest."""

import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from lightning import Callback
from torch import Tensor

import ddip_pl
from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import LinearOperator, ParallelBeamCT
from ddip_pl.physics.operator import Shape
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.reconstruction.method import Method
from ddip_pl.settings import PositiveInt, Range, Seed, allowed, checked, fits

ROOTS = (Method, MeasurementDataModule, LinearOperator, DiffusionPrior, EllipsesDataModule, Callback)
BAD = (0, -1, -1.5, 0.5, math.nan, math.inf, -math.inf, 1e30, 10**12, None, "many", True, [], {}, [math.nan], (1,), 2.0)


def kinds(hint: Any) -> Iterator[Any]:
    """A type and all types inside it, but not those inside a range."""
    yield hint
    if get_origin(hint) is not Annotated and get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from kinds(part) if not isinstance(part, list) else ()


def arguments(cls: type) -> dict[str, Any]:
    """Types of a constructor's arguments by name."""
    return {name: hint for name, hint in get_type_hints(cls.__init__, include_extras=True).items() if name != "return"}


def buildable(cls: type) -> bool:
    """Whether a command can build a class: from settings, and an operator from the shape of the volume besides."""
    given = arguments(cls)
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    by_shape = given.get("shape") == Shape or not issubclass(cls, LinearOperator)
    return not inspect.isabstract(cls) and by_shape and not any(given.get(name) is Tensor for name in required)


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def reachable() -> list[type]:
    """All classes of the package that commands can build, found by walking through the types of their settings."""
    for module in pkgutil.walk_packages(ddip_pl.__path__, "ddip_pl."):
        if not module.name.startswith("ddip_pl.cli"):
            import_module(module.name)
    found, waiting = set[type](), set(ROOTS)
    while waiting:
        cls = waiting.pop()
        found.add(cls)
        for one in subclasses(cls):
            if one.__module__.startswith("ddip_pl.") and "__init__" in dir(one) and buildable(one):
                found.add(one)
                inside = {kind for hint in arguments(one).values() for kind in kinds(hint) if inspect.isclass(kind)}
                waiting |= {kind for kind in inside if kind.__module__.startswith("ddip_pl.")} - found
    ours = {cls for cls in found if cls.__module__.startswith("ddip_pl.") and buildable(cls)}
    return sorted(ours, key=lambda cls: cls.__qualname__)


def is_numeric(hint: Any) -> bool:
    return any(
        (get_origin(kind) is Annotated and isinstance(get_args(kind)[1], Range))
        or kind in (int, float, complex)
        or (get_origin(kind) is Literal and any(type(choice) in (int, float) for choice in get_args(kind)))
        for kind in kinds(hint)
    )


CLASSES = reachable()
SETTINGS = [(cls, name) for cls in CLASSES for name, hint in arguments(cls).items() if is_numeric(hint)]


def within(value: Any, hint: Any) -> bool:
    """What the annotation says about a value, written once more without the module under test."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(within(value, part) for part in parts)
    if hint is NoneType:
        return value is None
    if origin is Literal:
        return value in parts and type(value) in map(type, parts)
    if origin is Annotated:
        if type(value) not in ((int,) if parts[0] is int else (int, float)) or not math.isfinite(value):
            return False
        limits = parts[1]
        inside = limits.low <= value <= limits.high
        return inside and not (limits.above and value == limits.low) and not (limits.below and value == limits.high)
    if origin in (tuple, Sequence) and type(value) in (list, tuple):
        wanted = parts if origin is tuple else parts * len(value)
        return len(wanted) == len(value) and all(within(one, part) for one, part in zip(value, wanted, strict=True))
    return False


def sample(hint: Any) -> Any:
    """Some value that a type allows."""
    if get_origin(hint) is Annotated:
        limits = get_args(hint)[1]
        return get_args(hint)[0]((limits.low + min(limits.high, limits.low + 2)) / 2)
    if get_origin(hint) is tuple:
        return tuple(map(sample, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return sample(get_args(hint)[0])
    return {str: "x"}.get(hint)


def test_the_walk_finds_classes_of_every_kind() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert names >= {
        "DDS", "DPS", "LoraTraining", "SelfTraining", "Sampler", "BestOf", "TotalVariation", "DeepImagePrior", "SENSE",
        "ConeBeamCT", "PoissonDisc", "Spiral", "Birdcage", "VolumeDataModule", "MeasuredDataModule",
        "EllipsesDataModule", "DiffusionPrior", "UNetConfig", "SampleImages", "RunLogging",
    }  # fmt: skip
    assert len(SETTINGS) > 90


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_finite_range(cls: type) -> None:
    bare = {name for name, hint in arguments(cls).items() for kind in kinds(hint) if kind in (int, float, complex)}
    assert bare == set(), f"declare the range of {bare} of {cls.__name__}, see ddip_pl/settings.py"
    for hint in arguments(cls).values():
        for kind in kinds(hint):
            if get_origin(kind) is Annotated:
                limits = get_args(kind)[1]
                assert math.isfinite(limits.low)
                assert limits.low < limits.high < 1e13


@pytest.mark.parametrize(("cls", "name"), SETTINGS, ids=lambda part: getattr(part, "__name__", part))
def test_bad_values_are_refused_in_one_line(cls: Any, name: str) -> None:
    hint = arguments(cls)[name]
    parameters = inspect.signature(cls).parameters.values()
    required = {p.name: sample(arguments(cls)[p.name]) for p in parameters if p.default is p.empty}
    refused = [value for value in BAD if not within(value, hint)]
    assert len(refused) > len(BAD) / 2
    for value in refused:
        with pytest.raises(InputError) as caught:
            cls(**required | {name: value})
        line = str(caught.value)
        assert line.startswith(f"{cls.__name__}: {name} is ")
        assert line.endswith(f"; give {allowed(hint)}")
        assert "\n" not in line
        assert len(line) < 250


@pytest.mark.parametrize(("cls", "name"), SETTINGS, ids=lambda part: getattr(part, "__name__", part))
def test_defaults_and_ends_of_the_ranges_are_allowed(cls: Any, name: str) -> None:
    hint, default = arguments(cls)[name], inspect.signature(cls).parameters[name].default
    assert default is inspect.Parameter.empty or fits(default, hint)
    for kind in kinds(hint):
        if get_origin(kind) is Annotated:
            number, limits = get_args(kind)
            assert (number(limits.low) in limits) is not limits.above
            assert (number(limits.high) in limits) is not limits.below


def test_numbers_of_numpy_count_as_numbers() -> None:
    @checked
    class Part:
        def __init__(self, count: PositiveInt, weights: Sequence[Annotated[float, Range(0, 1)]] = ()) -> None:
            self.count, self.weights = count, weights

    assert Part(np.int64(3), np.array([0.0, 1.0])).count == 3  # type: ignore[arg-type]
    for wrong in (np.float64(3), np.bool_(True), torch.tensor(3), "3", 3.0):
        with pytest.raises(InputError, match=r"Part: count is .*; give a whole number from 1 to 1000000$"):
            Part(wrong)
    for wrong in ("ab", np.array([0.5, np.nan]), np.ones((2, 2)), 0.5, [True]):
        with pytest.raises(InputError, match=r"Part: weights is .*; give a list, each a number from 0 to 1$"):
            Part(1, wrong)  # type: ignore[arg-type]


def test_a_class_that_inherits_its_constructor_is_named_in_the_message() -> None:
    @checked
    class Parent:
        def __init__(self, seed: Seed = 0) -> None: ...

    class Child(Parent): ...

    with pytest.raises(InputError, match=r"^Child: seed is -1; "):
        Child(-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"angles": 20_000}, "angles is 20000"),
        ({"angles": [1e30]}, r"angles is \[1e\+30\]"),
        ({"angular_range": 180.0}, "angular_range is 180.0; give a number above 0 and at most 12.57"),
        ({"spacing": 1e-3}, "spacing is 0.001; give a number from 0.01 to 100"),
        ({"spacing": 0.01, "shape": (1, 256, 256)}, "detectors is 36204; give a whole number from 1 to 16384"),
        ({"shape": (1, 10_000, 10_000)}, "shape is "),
    ],
)
def test_what_would_fill_the_memory_or_measure_nonsense(settings: dict[str, Any], message: str) -> None:
    make: Callable[..., Any] = ParallelBeamCT
    with pytest.raises(InputError, match=message):
        make(**{"shape": (1, 16, 16), "angles": 4} | settings)
