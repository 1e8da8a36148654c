"""Reading the description of an operator from a file: numbers, strings and arrays by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddip_pl.errors import InputError

ISOTROPIC = 0.05  # largest relative difference of height and width of a square pixel


def numbers(
    description: Mapping[str, Any], name: str, count: int, default: tuple[float, ...] = ()
) -> tuple[float, ...]:
    """`count` finite numbers.

    Raises:
        InputError: the entry is missing and there is no default, or it is something else.
    """
    given = description.get(name, default)
    try:
        values = tuple(float(value) for value in np.atleast_1d(given))
    except (TypeError, ValueError):
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        what = f"is {given}" if name in description else "is missing"
        raise InputError(f"attribute '{name}' {what}; expected {count} number{'s'[: count > 1]}")
    return values


def length(description: Mapping[str, Any], name: str) -> float:
    """A positive length, in mm.

    Raises:
        InputError: it is missing or not positive.
    """
    [value] = numbers(description, name, 1)
    if not value > 0:
        raise InputError(f"{name.replace('_', ' ')} is {value:g} mm; expected a positive length")
    return value


def array(description: Mapping[str, Any], name: str, kinds: str = "biuf") -> np.ndarray:
    """An array of numbers.

    Args:
        description: of the operator.
        name: of the array.
        kinds: NumPy's letters for the permitted types; by default real types only, "c" adds complex ones.

    Raises:
        InputError: it is missing or has another type.
    """
    values = description.get(name)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        found = [f"'{key}' {value.shape}" for key, value in description.items() if isinstance(value, np.ndarray)]
        what = "numbers" if "c" in kinds else "real numbers"
        raise InputError(f"no dataset '{name}' of {what}; next to the data it has {', '.join(found) or 'no datasets'}")
    return values


def square_pixel(pixel: tuple[float, float], what: str) -> float:
    """Side of a square pixel, in mm.

    Args:
        pixel: height and width, in mm.
        what: the measurements that need square pixels, for the error message.

    Raises:
        InputError: the pixel is not square.
    """
    height, width = pixel
    if abs(height - width) > ISOTROPIC * width:
        raise InputError(f"pixels of {height:g} x {width:g} mm; {what} need square ones, see data.plane")
    return float((height * width) ** 0.5)
