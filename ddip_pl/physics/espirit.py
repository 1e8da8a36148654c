"""ESPIRiT: coil maps from the fully sampled centre of k-space (Uecker et al. 2014)."""

import math

import torch
from torch import Tensor

KERNEL = 6  # width, in samples
NULL = 0.02  # singular values of the calibration matrix below this share of the largest belong to its null space
POWER, STEPS = 4, 25  # the largest eigenvalue is found with up to 25 steps, each with the 4th power of the matrix
CONVERGED = 1e-5  # change of an eigenvector in a step
ENTRIES = 2**22  # of the matrices of a block of rows that are in memory at once


def espirit_maps(centre: Tensor, height: int, width: int, crop: float) -> Tensor:
    """Coil maps of one slice, not normalised; 0 where the largest eigenvalue is at most `crop`.

    At every pixel, the sensitivities are the eigenvector of largest eigenvalue, 1 within the object, of the matrix
    `R_cd = sum_j k_jc conj(k_jd)`. The `k_j` are the images of kernels that span the row space of the calibration
    matrix, whose rows are all patches of the centre. As its kernels are small, `R` has few frequencies: it is computed
    from them directly, without an image of each kernel. The phase is that of the first coil.

    Args:
        centre: `(coils, calibration, calibration)`, complex, zero frequency in the middle.
        height: of the maps, in pixels.
        width: of the maps, in pixels.
        crop: see above.

    Returns:
        `(coils, height, width)`.
    """
    spectrum = gram_spectrum(row_space(centre))
    rows, columns = (waves(length, centre) for length in (height, width))
    along = torch.einsum("xq,cdpq->xpcd", columns, spectrum)
    block = max(1, ENTRIES // along[:, 0].numel())
    parts = [principal(torch.einsum("yp,xpcd->yxcd", part, along), crop) for part in rows.split(block)]
    return torch.cat(parts).movedim(-1, 0)


def row_space(centre: Tensor) -> Tensor:
    """Orthonormal kernels that span the row space of the calibration matrix: `(kernels, coils, KERNEL, KERNEL)`."""
    patches = centre.unfold(1, KERNEL, 1).unfold(2, KERNEL, 1).permute(1, 2, 0, 3, 4)
    matrix = patches.flatten(2).flatten(0, 1)
    squares, vectors = torch.linalg.eigh(matrix.mH @ matrix)  # ascending
    kept = squares > NULL**2 * squares[-1]
    return vectors[:, kept].mH.unflatten(1, patches.shape[2:])


def gram_spectrum(kernels: Tensor) -> Tensor:
    """Frequencies of `R`: the correlation of the kernels, `(coils, coils, 2 KERNEL - 1, 2 KERNEL - 1)`."""
    coils, size = kernels.shape[1], 2 * KERNEL - 1
    products = torch.einsum("jcpq,jdrs->pqcdrs", kernels, kernels.conj()).flip(-2, -1)
    spectrum = kernels.new_zeros(coils, coils, size, size)
    for p in range(KERNEL):
        for q in range(KERNEL):
            spectrum[..., p : p + KERNEL, q : q + KERNEL] += products[p, q]
    return spectrum / KERNEL**2


def waves(length: int, like: Tensor) -> Tensor:
    """The waves `exp(2 pi i x k / length)` of all frequencies of `R`, `(length, 2 KERNEL - 1)`."""
    x, k = torch.arange(length) - length // 2, torch.arange(2 * KERNEL - 1) - (KERNEL - 1)
    return torch.exp(2j * math.pi / length * torch.outer(x.double(), k.double())).to(like)


def principal(matrices: Tensor, crop: float) -> Tensor:
    """Eigenvectors of largest eigenvalue of Hermitian matrices `(..., n, n)`, 0 where that is at most `crop`.

    By power iteration. Matrices leave it when they have converged, or at the start if a bound shows that their largest
    eigenvalue is too small: the Frobenius norm of a power is at least that power of it.
    """
    shape, n = matrices.shape[:-1], matrices.shape[-1]
    matrices = matrices.reshape(-1, n, n)
    squares = matrices @ matrices
    powers = squares @ squares
    left = (norm(powers) > crop**POWER).nonzero()[:, 0]
    found, powers = matrices.new_zeros(len(matrices), n), powers[left]
    vectors = unit(powers.sum(2))
    for _ in range(STEPS):
        new = unit((powers @ vectors[:, :, None])[:, :, 0])
        moving = norm(new - vectors) > CONVERGED
        found[left] = new
        left, powers, vectors = left[moving], powers[moving], new[moving]
        if len(left) == 0:
            break
    values, phases = norm(matrices @ found[:, :, None]), unit(found[:, :1]).conj()
    return torch.where((values > crop)[:, None], found * phases, 0).view(shape)


def norm(values: Tensor) -> Tensor:
    """Root of the sum of squares over all axes but the first; for complex values faster than PyTorch's own."""
    return torch.view_as_real(values).flatten(1).square().sum(1).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(vectors, n)` scaled to length 1; 0 stays 0."""
    return vectors / norm(vectors).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
