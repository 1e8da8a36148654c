"""Parallel-beam computed tomography: the ray transform as a sparse matrix, and filtered back-projection."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import astra
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.operator import LinearOperator, spectral_norm

FILTERS = ("ram-lak", "hann")
CACHE_VERSION = 1  # raise it when the content of a cache file changes its meaning
SLICES_AT_ONCE = 32  # wider operands fall out of the processor's cache: 64 columns take 3 times as long each

with warnings.catch_warnings():  # PyTorch warns once per process that CSR tensors are in beta: have it here
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


class ParallelBeamCT(LinearOperator):
    """Parallel-beam CT of a square image of unit pixels centred at the origin, in unit spectral norm.

    The physical operator integrates along the lines `p_0 cos(theta) + p_1 sin(theta) = s`, with Joseph's
    linear interpolation (IEEE Trans. Med. Imaging 1, 1982). Geometry and orientation are those of ODL's
    `RayTransform` with `Parallel2dGeometry`, and the same arrays go into both: `p_0` grows from one row of
    the image to the next, `p_1` from column to column, `s` from bin to bin of a detector centred at 0.

    Images are (slices, 1, image_size, image_size), sinograms (slices, 1, angles, detectors); results have
    the operator's precision. The system matrix and its transpose are sparse and applied to all slices at
    once; they move with `.to(device)` and `.double()` and are not part of the state dict.

    Args:
        image_size: height and width of the image, in pixels.
        angles: number of equidistant angles `i * angular_range / angles`, or the angles in radians.
        angular_range: range of equidistant angles in radians; below pi for limited-angle CT.
        detectors: number of detector bins; by default they cover the diagonal of the image.
        spacing: width of a detector bin, in pixels.
        filter: window of the filtered back-projection: `ram-lak` (none) or `hann` (smoother).
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.

    Raises:
        InputError: a setting is out of its range.
    """

    matrix_rows: Tensor
    matrix_columns: Tensor
    matrix_values: Tensor
    transpose_rows: Tensor
    transpose_columns: Tensor
    transpose_values: Tensor
    fbp_filter: Tensor

    def __init__(
        self,
        image_size: int,
        angles: int | Sequence[float],
        angular_range: float = math.pi,
        detectors: int | None = None,
        spacing: float = 1.0,
        filter: Literal["ram-lak", "hann"] = "ram-lak",
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.image_size = _count("image_size", image_size)
        self.angles = _angles(angles, _length("angular_range", angular_range))
        self.spacing = _length("spacing", spacing)
        if detectors is None:
            detectors = math.ceil(math.sqrt(2) * self.image_size / self.spacing)
        self.detectors = _count("detectors", detectors)
        if filter not in FILTERS:
            raise InputError(f"filter is {filter!r}; expected one of {', '.join(FILTERS)}")
        self.filter = filter

        folder = Path(cache_dir) if cache_dir is not None else user_cache()
        geometry = self.image_size, self.angles, self.detectors, self.spacing
        matrix, self.scale = _load_or_build(*geometry, folder)
        matrix.data /= np.float32(self.scale)
        for name, part in ("matrix", matrix), ("transpose", matrix.T.tocsr()):
            self.register_buffer(f"{name}_rows", torch.from_numpy(part.indptr), persistent=False)
            self.register_buffer(f"{name}_columns", torch.from_numpy(part.indices), persistent=False)
            self.register_buffer(f"{name}_values", torch.from_numpy(part.data), persistent=False)

        # Back-projection sums over angles (weight: the angular step) and convolution over bins (weight: the
        # spacing). An angle's columns of A sum to 1 / spacing on average, and A lacks `scale` on either side.
        weights = _angular_weights(self.angles) * self.scale**2 * self.spacing**2
        response = _ramp(self.detectors, self.spacing, window=filter == "hann")
        fbp_filter = torch.from_numpy(np.outer(weights, response)).float()
        self.register_buffer("fbp_filter", fbp_filter, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sinogram (slices, 1, angles, detectors) of images `x` (slices, 1, image_size, image_size).

        Raises:
            ValueError: `x` has another shape.
        """
        return self._apply_matrix(x, self._image_shape, self._sinogram_shape, *self._matrices())

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection (slices, 1, image_size, image_size) of `y` (slices, 1, angles, detectors).

        Raises:
            ValueError: `y` has another shape.
        """
        return self._apply_matrix(y, self._sinogram_shape, self._image_shape, *reversed(self._matrices()))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Filtered back-projection of sinograms `y` (Kak & Slaney, Computerized Tomographic Imaging, 3.3).

        Every angle weighs half the gap between its neighbours in direction (modulo pi), so non-uniform and
        repeated directions are integrated correctly; a missing wedge is not filled in.

        Raises:
            ValueError: `y` is not (slices, 1, angles, detectors).
        """
        _check_shape(y, self._sinogram_shape)
        length = 2 * (self.fbp_filter.shape[-1] - 1)
        spectrum = torch.fft.rfft(y.to(self.fbp_filter.dtype), n=length) * self.fbp_filter
        return self.adjoint(torch.fft.irfft(spectrum, n=length)[..., : self.detectors])

    def extra_repr(self) -> str:
        first, last = self.angles[[0, -1]]
        return (
            f"image_size={self.image_size}, angles={len(self.angles)} ({first:.3f} to {last:.3f} rad), "
            f"detectors={self.detectors}, spacing={self.spacing:g}, "
            f"filter={self.filter}, scale={self.scale:.4g}"
        )

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return 1, self.image_size, self.image_size

    @property
    def _sinogram_shape(self) -> tuple[int, int, int]:
        return 1, len(self.angles), self.detectors

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """`A` and `A^T` as sparse tensors: views of the buffers, made anew so that they follow `.to()`."""
        pixels, rays = math.prod(self._image_shape), math.prod(self._sinogram_shape)
        return (
            _csr(self.matrix_rows, self.matrix_columns, self.matrix_values, (rays, pixels)),
            _csr(self.transpose_rows, self.transpose_columns, self.transpose_values, (pixels, rays)),
        )

    @staticmethod
    def _apply_matrix(
        x: Tensor, shape_in: tuple[int, ...], shape_out: tuple[int, ...], matrix: Tensor, transpose: Tensor
    ) -> Tensor:
        _check_shape(x, shape_in)
        out: Tensor = _SparseProduct.apply(x.to(matrix.dtype).flatten(1), matrix, transpose)
        return out.unflatten(1, shape_out)


class _SparseProduct(torch.autograd.Function):
    """`x -> x M^T`, (slices, columns) -> (slices, rows); its gradient is the product with the transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrices = transpose, matrix
        with torch.autocast(x.device.type, enabled=False):  # measurements stay in full precision
            return torch.cat([_product(matrix, part) for part in x.split(SLICES_AT_ONCE)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _SparseProduct.apply(grads[0], *ctx.matrices), None, None


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """`x M^T`; the sparse kernel is fast on row-major operands with an even number of columns."""
    if len(x) == 1:
        return (matrix @ x[0])[None]
    operand = F.pad(x, (0, 0, 0, len(x) % 2)).T.contiguous()
    return (matrix @ operand)[:, : len(x)].T


def _csr(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=False)


def _check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected a tensor of shape (slices, {expected}), got {tuple(x.shape)}")


# --- settings ---------------------------------------------------------------------------------------------


def _count(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least 1")
    return int(value)


def _length(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value!r}; expected a positive, finite number")
    return float(value)


def _angles(angles: int | Sequence[float], angular_range: float) -> np.ndarray:
    if isinstance(angles, (int, np.integer)):
        return np.arange(_count("angles", angles)) * (angular_range / angles)
    try:
        explicit = np.array(angles, dtype=np.float64)
    except (TypeError, ValueError):  # text, ragged lists
        explicit = np.empty(0)
    if explicit.ndim != 1 or explicit.size == 0 or not np.isfinite(explicit).all():
        raise InputError(f"angles is {angles!r}; expected their number or a list of finite angles in radians")
    return explicit


# --- filtered back-projection -----------------------------------------------------------------------------


def _angular_weights(angles: np.ndarray) -> np.ndarray:
    """Quadrature weights of the integral over directions in [0, pi), in radians.

    A direction weighs half the gap between its neighbours, shared among the angles that look along it. The
    widest gap, if more than three times the median, is a missing wedge: no measurement stands for it.
    """
    fraction = np.round(angles / np.pi % 1, 9) % 1
    directions, inverse, repeats = np.unique(fraction, return_inverse=True, return_counts=True)
    gaps = np.pi * np.diff(directions, append=directions[0] + 1)
    gaps[gaps.argmax()] = gaps.max() if gaps.max() <= 3 * np.median(gaps) else np.median(gaps)
    return ((gaps + np.roll(gaps, 1)) / 2 / repeats)[inverse]


def _ramp(detectors: int, spacing: float, window: bool) -> np.ndarray:
    """Real frequency response of the ramp filter, sampled in space (Kak & Slaney, eq. 3.61).

    Sampled in space and zero-padded to twice the detector, it has neither an offset nor wrap-around.
    """
    length = 2 ** math.ceil(math.log2(2 * detectors))
    n = np.fft.fftfreq(length, 1 / length).round()  # 0, 1, ..., -2, -1
    kernel = np.where(n % 2 == 1, -1 / (np.pi * spacing * np.where(n == 0, 1, n)) ** 2, 0.0)
    kernel[0] = 1 / (2 * spacing) ** 2
    response = np.fft.rfft(kernel).real
    if window:
        response *= 0.5 * (1 + np.cos(2 * np.pi * np.fft.rfftfreq(length)))
    return response


# --- system matrix ----------------------------------------------------------------------------------------


def _load_or_build(
    image_size: int, angles: np.ndarray, detectors: int, spacing: float, folder: Path
) -> tuple[csr_matrix, float]:
    """Physical system matrix (angles * detectors, image_size^2), float32, and its spectral norm."""
    shape = (len(angles) * detectors, image_size**2)
    key = [CACHE_VERSION, astra.__version__, image_size, angles.tolist(), detectors, spacing]

    def make() -> dict[str, np.ndarray]:
        matrix, norm = _build(image_size, angles, detectors, spacing)
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "norm": np.array(norm)}

    kept = cached(folder, "parallel-beam", key, make)
    return csr_matrix((kept["data"], kept["indices"], kept["indptr"]), shape), float(kept["norm"])


def _build(image_size: int, angles: np.ndarray, detectors: int, spacing: float) -> tuple[csr_matrix, float]:
    volume = astra.create_vol_geom(image_size, image_size)
    projections = astra.create_proj_geom("parallel", spacing, detectors, angles - np.pi / 2)  # ODL's angles
    projector = astra.create_projector("linear", projections, volume)
    identifier = astra.projector.matrix(projector)
    matrix = astra.matrix.get(identifier)
    astra.matrix.delete(identifier)
    astra.projector.delete(projector)

    norm = spectral_norm(lambda x: torch.from_numpy(matrix.T @ (matrix @ x.numpy())), (image_size**2,))
    if norm == 0:
        raise InputError("no ray meets the image; expected detectors that cover it")
    return matrix.astype(np.float32), norm
