"""Volumes as text small enough for a page: averaged, quantised, compressed."""

import base64
import zlib
from typing import Any

import numpy as np
from einops import reduce

LEVELS = 4095  # largest 12-bit code; code 0 stands for no value


def coarsen(data: np.ndarray, factor: int) -> np.ndarray:
    """Means over cubes of `factor` voxels along each axis; cubes that cross the border repeat its voxels."""
    edge = [(0, -length % factor) for length in data.shape]
    padded = np.pad(data, edge, mode="edge")
    return reduce(padded, "(x i) (y j) (z k) -> x y z", "mean", i=factor, j=factor, k=factor)


def quantise(data: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Quantise finite values to 12-bit codes.

    Returns:
        Codes as uint16, and `low` and `step`: a code c > 0 stands for `low + step * c`, with an error of at most
        `step / 2`; 0 stands for a voxel without a finite value.
    """
    finite = np.isfinite(data)
    smallest, largest = (float(data[finite].min()), float(data[finite].max())) if finite.any() else (0.0, 0.0)
    step = (largest - smallest) / (LEVELS - 1) or 1.0
    scaled = np.where(finite, (data.astype(np.float64) - smallest) / step, 0)
    return np.where(finite, np.rint(scaled) + 1, 0).astype(np.uint16), smallest - step, step


def pack(data: np.ndarray) -> dict[str, Any]:
    """A volume `(x, y, z)` as JSON.

    Codes are stored with x fastest, each as its difference from the previous one, all low bytes before all high bytes:
    this compresses to half the size of the codes themselves.
    """
    codes, low, step = quantise(data)
    flat = codes.ravel(order="F")
    differences = np.diff(flat, prepend=np.uint16(0))
    planes = np.concatenate([differences & 0xFF, differences >> 8]).astype(np.uint8)
    return {"low": low, "step": step, "codes": base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()}
