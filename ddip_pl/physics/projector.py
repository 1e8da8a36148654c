"""Computed tomography by a sparse system matrix, which ASTRA computes and a cache keeps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import astra
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.description import square_pixel
from ddip_pl.physics.geometry import STANDARD, geometry_from, is_standard, plane_vectors, scaled
from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import Description, LinearOperator, Shape, spectral_norm

CACHE_VERSION = 2  # raise it when the content of a cache file changes its meaning
SLICES_AT_ONCE = 32  # wider operands fall out of the processor's cache: 64 columns take 3 times as long each


class Projector(LinearOperator):
    """Line integrals of square slices of unit pixels centred at the origin, in unit spectral norm.

    Images are `(slices, 1, size, size)`, sinograms `(slices, 1, angles, detectors)`; results have the operator's
    precision. The system matrix and its transpose are sparse and applied to all slices at once; they move with
    `.to(device)` and `.double()` and are not part of the state dict.

    Args:
        shape: of the volume: `(slices, size, size)`.
        geometry: description of the scan geometry, in pixels; see `ddip_pl.physics.geometry`.
        pixel: size of a pixel in the unit of the lengths of `.geometry`.
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.

    Attributes:
        angles: in radians.
        detectors: number of detector bins.
        spacing: width of a detector bin, in pixels.
        discretisation: ASTRA's name of it, such as "linear" (Joseph's).
        beam: ASTRA's name of the geometry, such as "parallel".

    Raises:
        InputError: no ray meets the image.
    """

    axes = ("slices", "angles", "detectors")
    discretisation: ClassVar[str]
    beam: ClassVar[str]

    matrix_rows: Tensor
    matrix_columns: Tensor
    matrix_values: Tensor
    transpose_rows: Tensor
    transpose_columns: Tensor
    transpose_values: Tensor

    def __init__(
        self, shape: Shape, geometry: Description, pixel: float = 1.0, cache_dir: str | Path | None = None
    ) -> None:
        super().__init__(shape)
        use_up_the_warning()
        self.angles, self.detectors = geometry["angles"], geometry["detectors"]
        self.spacing, self.pixel, self.norm = geometry["detector_spacing"], pixel, 1.0
        self._geometry = geometry
        folder = Path(cache_dir) if cache_dir is not None else user_cache()
        matrix, self.scale = _load_or_build(self.discretisation, self.beam, self.shape[1], geometry, folder)
        matrix.data /= np.float32(self.scale)
        for name, part in ("matrix", matrix), ("transpose", matrix.T.tocsr()):
            self.register_buffer(f"{name}_rows", torch.from_numpy(part.indptr), persistent=False)
            self.register_buffer(f"{name}_columns", torch.from_numpy(part.indices), persistent=False)
            self.register_buffer(f"{name}_values", torch.from_numpy(part.data), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sinogram `(slices, 1, angles, detectors)` of images `x (slices, 1, size, size)`.

        Raises:
            ValueError: `x` has another shape.
        """
        return self._apply_matrix(x, self.domain[1:], self.range[1:], *self._matrices())

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection `(slices, 1, size, size)` of `y (slices, 1, angles, detectors)`.

        Raises:
            ValueError: `y` has another shape.
        """
        return self._apply_matrix(y, self.range[1:], self.domain[1:], *reversed(self._matrices()))

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`."""
        return sinogram_noise(y)

    @property
    def range(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of `y`."""
        return self.shape[0], 1, len(self.angles), self.detectors

    @property
    def geometry(self) -> Any:
        """The scan geometry, an object of `odl.applications.tomo`."""
        return geometry_from(scaled(self._geometry, self.pixel))

    def describe(self, pixel: tuple[float, float]) -> Description:
        """Angles, lengths in mm, and what else is unusual in the geometry; see `ddip_pl.physics.geometry`."""
        side = square_pixel(pixel, "sinograms")
        lengths = {n: v for n, v in scaled(self._geometry, side).items() if n not in ("kind", "detectors")}
        return lengths | {"image_size": self.shape[1], "pixel_size": side}

    def unit(self, pixel: tuple[float, float]) -> float:
        return self.scale * square_pixel(pixel, "sinograms")

    def extra_repr(self) -> str:
        first, last = self.angles[[0, -1]]
        unusual = "".join(f", {name}={value}" for name, value in self._geometry.items() if name not in STANDARD)
        return (
            f"shape={self.shape}, angles={len(self.angles)} ({first:.3f} to {last:.3f} rad), "
            f"detectors={self.detectors}, spacing={self.spacing:g}, scale={self.scale:.4g}{unusual}"
        )

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """`A` and `A^T` as sparse tensors: views of the buffers, made anew so that they follow `.to()`."""
        pixels, rays = math.prod(self.domain[1:]), math.prod(self.range[1:])
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


@cache
def use_up_the_warning() -> None:
    """Make PyTorch give its one warning per process, that CSR tensors are in beta, where nobody sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


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
    discretisation: str, beam: str, size: int, geometry: Mapping[str, Any], folder: Path
) -> tuple[csr_matrix, float]:
    """Physical system matrix (angles * detectors, size^2), float32, and its spectral norm."""
    angles, detectors = geometry["angles"], geometry["detectors"]
    unusual = {name: np.asarray(value).tolist() for name, value in geometry.items() if name not in STANDARD}
    key = [
        CACHE_VERSION, astra.__version__, discretisation, size, angles.tolist(), detectors,
        geometry["detector_spacing"], _distances(geometry), *([unusual] if unusual else []),
    ]  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        matrix, norm = _build(discretisation, beam, size, geometry)
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "norm": np.array(norm)}

    kept = cached(folder, beam, key, make)
    shape = (len(angles) * detectors, size**2)
    return csr_matrix((kept["data"], kept["indices"], kept["indptr"]), shape), float(kept["norm"])


def _build(discretisation: str, beam: str, size: int, geometry: Mapping[str, Any]) -> tuple[csr_matrix, float]:
    volume, detectors = astra.create_vol_geom(size, size), geometry["detectors"]
    # ODL turns a standard parallel beam into exactly these numbers. Of a fan beam it makes vectors, with which ASTRA
    # puts rays along pixel borders on the other side. It takes increasing angles only, and two seconds to import.
    if is_standard(geometry):
        angles = geometry["angles"] - np.pi / 2  # as ODL counts them
        rays = astra.create_proj_geom(beam, geometry["detector_spacing"], detectors, angles, *_distances(geometry))
    else:
        rays = astra.create_proj_geom(f"{beam}_vec", detectors, plane_vectors(geometry))
    handle = astra.create_projector(discretisation, rays, volume)
    identifier = astra.projector.matrix(handle)
    matrix = astra.matrix.get(identifier)
    astra.matrix.delete(identifier)
    astra.projector.delete(handle)

    norm = spectral_norm(lambda x: torch.from_numpy(matrix.T @ (matrix @ x.numpy())), (size**2,))
    if norm == 0:
        raise InputError("no ray meets the image; expected detectors that cover it")
    return matrix.astype(np.float32), norm


def _distances(geometry: Mapping[str, Any]) -> list[float]:
    return [geometry[name] for name in ("source_distance", "detector_distance") if name in geometry]
