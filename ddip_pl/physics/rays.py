"""System matrices of rays through an image, with the numbers of ASTRA, for where it is not available."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix, vstack

BORDER = 1e-7  # a ray along a border of pixels belongs to the left or lower one, in ASTRA too but for rounding


def system_matrix(discretisation: str, size: int, detectors: int, vectors: np.ndarray) -> csr_matrix:
    """Matrix `(views * detectors, size^2)` of line integrals through unit pixels, in double precision.

    Args:
        discretisation: ASTRA's name: "linear" for parallel beams by Joseph's method, "line_fanflat" for fan beams by
            Siddon's.
        size: of the square image, in pixels.
        detectors: number of bins.
        vectors: of each view, `(views, 6)`; see `plane_vectors`.
    """
    parallel = discretisation == "linear"
    weights = joseph if parallel else siddon
    return vstack([weights(size, *rays) for rays in rays_of(detectors, vectors, parallel)], "csr")


def rays_of(detectors: int, vectors: np.ndarray, parallel: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A point on each ray of a view and the ray's direction, both `(detectors, 2)`; x along columns, y against rows."""
    offsets = np.arange(detectors)[:, None] - (detectors - 1) / 2
    for first, middle, step in vectors.reshape(-1, 3, 2):
        bins = middle + offsets * step
        yield bins, np.broadcast_to(first, bins.shape) if parallel else bins - first


def joseph(size: int, points: np.ndarray, directions: np.ndarray) -> csr_matrix:
    """Linear interpolation between the two nearest pixels in each row, or column if the ray is flat (Joseph 1982)."""
    flat = np.abs(directions[:, 0]) >= np.abs(directions[:, 1])
    along = np.where(flat, 0, 1)[:, None]
    centres = np.arange(size) - (size - 1) / 2

    def pick(values: np.ndarray, axis: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, axis, 1)

    step = pick(directions, 1 - along) / pick(directions, along)
    across = pick(points, 1 - along) + step * (centres - pick(points, along))  # where rays cross lines of centres
    position = across + (size - 1) / 2
    lower = np.floor(position).astype(int)
    length = np.hypot(1, step)
    rays = np.broadcast_to(np.arange(len(points))[:, None], position.shape)
    line = np.broadcast_to(np.arange(size), position.shape)
    indices = np.stack([lower, lower + 1])
    weight = length * np.stack([lower + 1 - position, position - lower])
    column = np.where(flat[:, None], line, indices)
    row = size - 1 - np.where(flat[:, None], indices, line)
    return sparse(size, np.broadcast_to(rays, indices.shape), row, column, weight)


def siddon(size: int, points: np.ndarray, directions: np.ndarray) -> csr_matrix:
    """Lengths of the rays within each pixel (Siddon 1985)."""
    borders = np.arange(size + 1) - size / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # rays along an axis cross none of its borders
        crossings = (borders - points[:, :, None]) / directions[:, :, None]
    crossings = np.sort(np.where(np.isfinite(crossings), crossings, np.inf).reshape(len(points), -1), axis=1)
    start, stop = crossings[:, :-1], crossings[:, 1:]
    inside = np.isfinite(stop)
    start, stop = np.where(inside, start, 0), np.where(inside, stop, 0)
    middle = points[:, :, None] + (start + stop)[:, None] / 2 * directions[:, :, None] - BORDER
    column, row = np.floor(middle[:, 0] + size / 2).astype(int), np.floor(size / 2 - middle[:, 1]).astype(int)
    lengths = (stop - start) * np.linalg.norm(directions, axis=1, keepdims=True)
    rays = np.broadcast_to(np.arange(len(points))[:, None], lengths.shape)
    return sparse(size, rays, row, column, lengths)


def sparse(size: int, rays: np.ndarray, row: np.ndarray, column: np.ndarray, weight: np.ndarray) -> csr_matrix:
    """The matrix of one view, without pixels outside the image."""
    kept = (row >= 0) & (row < size) & (column >= 0) & (column < size) & (weight > 0)
    pixels = row[kept] * size + column[kept]
    return csr_matrix((weight[kept], (rays[kept], pixels)), (int(rays.max()) + 1, size**2))
