"""Computed tomography with a sparse system matrix, computed by ASTRA or, without it, by `system_matrix`, and cached."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from ddip_pl.errors import InputError
from ddip_pl.physics.cache import cached, user_cache
from ddip_pl.physics.description import square_pixel
from ddip_pl.physics.geometry import (
    STANDARD,
    PixelSize,
    geometry_from,
    is_standard,
    plane_vectors,
    read_geometry,
    scaled,
)
from ddip_pl.physics.noise import sinogram_noise
from ddip_pl.physics.operator import Description, LinearOperator, Shape, spectral_norm
from ddip_pl.physics.rays import system_matrix
from ddip_pl.physics.vectors import read_vectors
from ddip_pl.settings import checked

try:
    import astra
except ImportError:  # it has no wheels for macOS and ARM
    astra = None

CACHE_VERSION = 2  # raise when the content or meaning of a cache file changes
SLICES_AT_ONCE = 32  # wider operands do not fit the CPU cache: with 64 columns, each takes 3 times as long


@checked
class Projector(LinearOperator):
    """Line integrals through square slices of unit pixels, centred at the origin; unit spectral norm.

    Images are `(slices, 1, size, size)`, sinograms `(slices, 1, angles, detectors)`. Results have the operator's
    precision. The system matrix and its transpose are sparse; `.to(device)` and `.double()` convert them, and they are
    not part of the state dict.

    Args:
        shape: of the volume: `(slices, size, size)`.
        geometry: description of the scan geometry, in pixels; see `ddip_pl.physics.geometry`.
        pixel: size of a pixel in the unit of the lengths of `.geometry`.
        cache_dir: folder that keeps the system matrix between runs, by default `ddip-pl` in the user's cache.

    Attributes:
        angles: in radians.
        detectors: number of detector bins.
        spacing: width of a detector bin, in pixels.
        discretisation: ASTRA's name for it, such as "linear" (Joseph's method).
        beam: ASTRA's name for the geometry, such as "parallel".

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
        self, shape: Shape, geometry: Description, pixel: PixelSize = 1.0, cache_dir: str | Path | None = None
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
            InputError: `x` has another shape.
        """
        self.expect(x, self.domain)
        return self._apply_matrix(x, self.range[1:], *self._matrices())

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection `(slices, 1, size, size)` of `y (slices, 1, angles, detectors)`.

        Raises:
            InputError: `y` has another shape.
        """
        self.expect(y, self.range)
        return self._apply_matrix(y, self.domain[1:], *reversed(self._matrices()))

    def noise_level(self, y: Tensor) -> float:
        """See `sinogram_noise`."""
        return sinogram_noise(y)

    def readouts(self) -> Tensor:
        """One label for each angle."""
        return torch.arange(len(self.angles), device=self.like.device)[None, :, None].expand(self.range[1:])

    @property
    def range(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of `y`."""
        return self.shape[0], 1, len(self.angles), self.detectors

    @property
    def geometry(self) -> Any:
        """The scan geometry, an object of `odl.applications.tomo`.

        Raises:
            InputError: the geometry was given by vectors; ODL has none for them.
        """
        return geometry_from(scaled(self._geometry, self.pixel))

    @property
    def vectors(self) -> np.ndarray:
        """The scan geometry view by view, `(views, 6)` in the unit of `pixel`; see the argument `vectors`."""
        return np.array(plane_vectors(self._geometry) * self.pixel)

    def describe(self, pixel: tuple[float, float]) -> Description:
        """The geometry, with lengths in mm; see `ddip_pl.physics.geometry`."""
        side = square_pixel(pixel, "sinograms")
        lengths = {n: v for n, v in scaled(self._geometry, side).items() if n not in ("kind", "detectors")}
        return lengths | {"image_size": self.shape[1], "pixel_size": side}

    @classmethod
    def from_description(cls, description: Mapping[str, Any], data: tuple[int, ...]) -> LinearOperator:
        made: Any = cls  # of the subclasses, which make a geometry of their settings or take one
        if "vectors" in description:
            size, pixel, vectors = read_vectors(description, data, cls.axes, 6)
            return made((data[0], size, size), vectors=vectors, detectors=data[2], pixel=pixel)
        size, pixel, geometry = read_geometry(description, cls.kind, data, cls.axes)
        return made((data[0], size, size), geometry=geometry, pixel=pixel)

    def unit(self, pixel: tuple[float, float]) -> float:
        return self.scale * square_pixel(pixel, "sinograms")

    def extra_repr(self) -> str:
        first, last = self.angles[[0, -1]]
        usual = STANDARD | {"vectors"}
        unusual = "".join(f", {name}={value}" for name, value in self._geometry.items() if name not in usual)
        return (
            f"shape={self.shape}, angles={len(self.angles)} ({first:.3f} to {last:.3f} rad), "
            f"detectors={self.detectors}, spacing={self.spacing:g}, scale={self.scale:.4g}{unusual}"
        )

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """`A` and `A^T` as sparse tensors; views of the buffers, made on each call so that they follow `.to()`."""
        pixels, rays = math.prod(self.domain[1:]), math.prod(self.range[1:])
        return (
            _csr(self.matrix_rows, self.matrix_columns, self.matrix_values, (rays, pixels)),
            _csr(self.transpose_rows, self.transpose_columns, self.transpose_values, (pixels, rays)),
        )

    @staticmethod
    def _apply_matrix(x: Tensor, shape_out: tuple[int, ...], matrix: Tensor, transpose: Tensor) -> Tensor:
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
    """Trigger, and hide, PyTorch's warning that CSR tensors are in beta; it comes once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """`x M^T`; the sparse kernel is fast for row-major operands with an even number of columns."""
    if len(x) == 1:
        return (matrix @ x[0])[None]
    operand = F.pad(x, (0, 0, 0, len(x) % 2)).T.contiguous()
    return (matrix @ operand)[:, : len(x)].T


def _csr(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=False)


# --- system matrix ----------------------------------------------------------------------------------------


def _load_or_build(
    discretisation: str, beam: str, size: int, geometry: Mapping[str, Any], folder: Path
) -> tuple[csr_matrix, float]:
    """Physical system matrix (angles * detectors, size^2), float32, and its spectral norm."""
    angles, detectors = geometry["angles"], geometry["detectors"]
    unusual = {name: np.asarray(value).tolist() for name, value in geometry.items() if name not in STANDARD}
    key = [
        CACHE_VERSION, astra.__version__ if astra else "rays", discretisation, size, angles.tolist(), detectors,
        geometry["detector_spacing"], _distances(geometry), *([unusual] if unusual else []),
    ]  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        matrix, norm = _build(discretisation, beam, size, geometry)
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "norm": np.array(norm)}

    kept = cached(folder, beam, key, make)
    shape = (len(angles) * detectors, size**2)
    return csr_matrix((kept["data"], kept["indices"], kept["indptr"]), shape), float(kept["norm"])


def _build(discretisation: str, beam: str, size: int, geometry: Mapping[str, Any]) -> tuple[csr_matrix, float]:
    build = _build_with_astra if astra else _build_without
    matrix = build(discretisation, beam, size, geometry)
    norm = spectral_norm(lambda x: torch.from_numpy(matrix.T @ (matrix @ x.numpy())), (size**2,))
    if norm == 0:
        raise InputError("no ray meets the image; expected detectors that cover it")
    return matrix.astype(np.float32), norm


def _build_without(discretisation: str, beam: str, size: int, geometry: Mapping[str, Any]) -> csr_matrix:
    return system_matrix(discretisation, size, geometry["detectors"], plane_vectors(geometry))


def _build_with_astra(discretisation: str, beam: str, size: int, geometry: Mapping[str, Any]) -> csr_matrix:
    volume, detectors = astra.create_vol_geom(size, size), geometry["detectors"]
    # For a standard parallel beam ODL gives ASTRA exactly these numbers. For a fan beam it gives vectors, with which
    # ASTRA assigns rays along pixel borders to the other side. ODL also needs increasing angles, and two seconds to
    # import.
    if is_standard(geometry):
        angles = geometry["angles"] - np.pi / 2  # ODL's convention
        rays = astra.create_proj_geom(beam, geometry["detector_spacing"], detectors, angles, *_distances(geometry))
    else:
        rays = astra.create_proj_geom(f"{beam}_vec", detectors, plane_vectors(geometry))
    handle = astra.create_projector(discretisation, rays, volume)
    identifier = astra.projector.matrix(handle)
    matrix = astra.matrix.get(identifier)
    astra.matrix.delete(identifier)
    astra.projector.delete(handle)
    return matrix


def _distances(geometry: Mapping[str, Any]) -> list[float]:
    return [geometry[name] for name in ("source_distance", "detector_distance") if name in geometry]
