"""Reconstruction with sparse wavelet coefficients (compressed sensing; Lustig, Donoho & Pauly 2007)."""

from collections.abc import Iterator

import pywt
import torch
from torch import Tensor

from ddip_pl.baselines.baseline import Baseline, absolute
from ddip_pl.baselines.spinning import spinning_fista
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import Positive, PositiveInt, checked

HAAR = pywt.Wavelet("haar")  # as the wavelets move, smoother ones are no better (docs/results/methods.md)
COARSEST = 8  # pixels


def one_level(length: int) -> Tensor:
    """One level of the periodic transform as an orthonormal matrix: `length / 2` rows of averages, then of details."""
    low, high = (torch.tensor(taps, dtype=torch.float64) for taps in (HAAR.rec_lo, HAAR.rec_hi))
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for row in range(length // 2):
        columns = (2 * row + torch.arange(len(low))) % length
        matrix[row].index_add_(0, columns, low)
        matrix[length // 2 + row].index_add_(0, columns, high)
    return matrix


def across_slices(x: Tensor, first: int) -> tuple[Tensor, slice]:
    """One level of the Haar transform across slices: pairs of neighbours become sum and difference over `sqrt(2)`.

    The transform is orthonormal and its own inverse.

    Args:
        x: images `(slices, channels, height, width)`.
        first: slice with which the first pair begins; slices without a partner stay as they are.

    Returns:
        The transformed images, and which of them are differences.
    """
    x = x.clone()
    end = first + (len(x) - first) // 2 * 2
    even, odd = x[first:end:2].clone(), x[first + 1 : end : 2].clone()
    x[first:end:2], x[first + 1 : end : 2] = (even + odd) / 2**0.5, (even - odd) / 2**0.5
    return x, slice(first + 1, end, 2)


class Wavelet:
    """Orthonormal 2D wavelet transform of images, with periodic boundaries.

    Rows and columns are halved as long as both are even and their halves are no shorter than 8 pixels.
    The levels are matrix products, which run on a GPU too.

    Args:
        like: an image that gives height, width, precision and device.
    """

    def __init__(self, like: Tensor):
        height, width = like.shape[-2:]
        self.levels = []
        while height % 2 == width % 2 == 0 and min(height, width) >= 2 * COARSEST:
            self.levels.append((one_level(height).to(like), one_level(width).to(like)))
            height, width = height // 2, width // 2
        self.coarsest = height, width

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients of images `(..., height, width)`, in the same shape; the averages are in the top left corner."""
        x = x.clone()
        for rows, columns in self.levels:
            block = x[..., : len(rows), : len(columns)]
            block.copy_(rows @ block @ columns.T)
        return x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse, and adjoint, of `analyse`."""
        x = coefficients.clone()
        for rows, columns in reversed(self.levels):
            block = x[..., : len(rows), : len(columns)]
            block.copy_(rows.T @ block @ columns)
        return x

    def shrink(self, x: Tensor, threshold: float, first: int = 0) -> Tensor:
        """Proximal operator of `threshold sum |details|` for images `(slices, channels, height, width)`.

        All coefficients of a difference of slices (`across_slices`) are details; of the other images, all but the
        coarsest averages. The modulus is over channels: in complex images, magnitudes shrink and phases stay.

        Args:
            x: the images.
            threshold: by which the modulus of each detail shrinks.
            first: slice with which the first pair begins.
        """
        x, differences = across_slices(x, first)
        coefficients = self.analyse(x)
        modulus = torch.linalg.vector_norm(coefficients, dim=1, keepdim=True)
        factor = (1 - threshold / modulus.clamp(min=1e-12)).clamp(min=0)
        height, width = self.coarsest
        others = torch.ones(len(x), dtype=torch.bool)
        others[differences] = False
        factor[others, :, :height, :width] = 1
        return across_slices(self.synthesise(coefficients * factor), first)[0]


@checked
class L1Wavelet(Baseline):
    """`min_x 1/2 ||A x - y||^2 + strength sum |details of W x|`, with 3D Haar wavelets `W`: one level across slices.

    Solved by `spinning_fista`, with shifts that reach every position of the coarsest wavelets. In each iteration,
    slices are paired at random with the one before or after.

    Args:
        strength: weight of the wavelet coefficients, in units of `sigma_y`.
        iterations: number.
    """

    def __init__(self, strength: Positive = 0.05, iterations: PositiveInt = 400):
        super().__init__(iterations)
        self.strength = strength

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        strength, wavelet = absolute(self.strength, measurement), Wavelet(measurement.operator.zeros())
        pairs = torch.Generator().manual_seed(1)

        def shrunk(z: Tensor) -> Tensor:
            return wavelet.shrink(z, strength, first=int(torch.randint(2, (), generator=pairs)))

        return spinning_fista(measurement, shrunk, 2 ** len(wavelet.levels), self.iterations)
