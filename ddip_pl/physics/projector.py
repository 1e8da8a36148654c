"""Computed tomography by a sparse system matrix, which ASTRA computes and a cache keeps."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import astra
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import LinearOperator, spectral_norm

CACHE_VERSION = 2  # raise it when the content of a cache file changes its meaning
SLICES_AT_ONCE = 32  # wider operands fall out of the processor's cache: 64 columns take 3 times as long each

with warnings.catch_warnings():  # PyTorch warns once per process that CSR tensors are in beta: have it here
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


class Projector(LinearOperator):
    """Line integrals of square images of unit pixels centred at the origin, in unit spectral norm.

    Images are (slices, 1, image_size, image_size), sinograms (slices, 1, angles, detectors); results have
    the operator's precision. The system matrix and its transpose are sparse and applied to all slices at
    once; they move with `.to(device)` and `.double()` and are not part of the state dict.

    Args:
        projector: ASTRA's name of the discretisation, such as "linear" (Joseph's).
        kind: ASTRA's name of the geometry, such as "parallel".
        image_size: height and width of the image, in pixels.
        angles: in radians, as ODL counts them.
        detectors: number of detector bins.
        spacing: width of a detector bin, in pixels.
        distances: further lengths of the geometry, in pixels.
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.

    Raises:
        InputError: no ray meets the image.
    """

    matrix_rows: Tensor
    matrix_columns: Tensor
    matrix_values: Tensor
    transpose_rows: Tensor
    transpose_columns: Tensor
    transpose_values: Tensor

    def __init__(
        self,
        projector: str,
        kind: str,
        image_size: int,
        angles: np.ndarray,
        detectors: int,
        spacing: float,
        distances: tuple[float, ...] = (),
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.angles, self.detectors, self.spacing = image_size, angles, detectors, spacing
        folder = Path(cache_dir) if cache_dir is not None else user_cache()
        matrix, self.scale = _load_or_build(projector, kind, image_size, angles, detectors, spacing, distances, folder)
        matrix.data /= np.float32(self.scale)
        for name, part in ("matrix", matrix), ("transpose", matrix.T.tocsr()):
            self.register_buffer(f"{name}_rows", torch.from_numpy(part.indptr), persistent=False)
            self.register_buffer(f"{name}_columns", torch.from_numpy(part.indices), persistent=False)
            self.register_buffer(f"{name}_values", torch.from_numpy(part.data), persistent=False)

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

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`."""
        return sinogram_noise(y)

    def extra_repr(self) -> str:
        first, last = self.angles[[0, -1]]
        return (
            f"image_size={self.image_size}, angles={len(self.angles)} ({first:.3f} to {last:.3f} rad), "
            f"detectors={self.detectors}, spacing={self.spacing:g}, scale={self.scale:.4g}"
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
        check_shape(x, shape_in)
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


def check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless `x` is `(slices, *shape)`."""
    if x.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected a tensor of shape (slices, {expected}), got {tuple(x.shape)}")


# --- system matrix ----------------------------------------------------------------------------------------


def _load_or_build(
    projector: str, kind: str, image_size: int, angles: np.ndarray, detectors: int, spacing: float,
    distances: tuple[float, ...], folder: Path,
) -> tuple[csr_matrix, float]:  # fmt: skip
    """Physical system matrix (angles * detectors, image_size^2), float32, and its spectral norm."""
    shape = (len(angles) * detectors, image_size**2)
    key = [CACHE_VERSION, astra.__version__, projector, image_size, angles.tolist(), detectors, spacing, distances]

    def make() -> dict[str, np.ndarray]:
        matrix, norm = _build(projector, kind, image_size, angles, detectors, spacing, distances)
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "norm": np.array(norm)}

    kept = cached(folder, kind, key, make)
    return csr_matrix((kept["data"], kept["indices"], kept["indptr"]), shape), float(kept["norm"])


def _build(
    projector: str, kind: str, image_size: int, angles: np.ndarray, detectors: int, spacing: float,
    distances: tuple[float, ...],
) -> tuple[csr_matrix, float]:  # fmt: skip
    volume = astra.create_vol_geom(image_size, image_size)
    projections = astra.create_proj_geom(kind, spacing, detectors, angles - np.pi / 2, *distances)  # ODL's angles
    handle = astra.create_projector(projector, projections, volume)
    identifier = astra.projector.matrix(handle)
    matrix = astra.matrix.get(identifier)
    astra.matrix.delete(identifier)
    astra.projector.delete(handle)

    norm = spectral_norm(lambda x: torch.from_numpy(matrix.T @ (matrix @ x.numpy())), (image_size**2,))
    if norm == 0:
        raise InputError("no ray meets the image; expected detectors that cover it")
    return matrix.astype(np.float32), norm
