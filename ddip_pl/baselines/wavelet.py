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

    def shrink(self, x: Tensor, threshold: float) -> Tensor:
        """Proximal operator of `threshold sum |details|` for images `(slices, channels, height, width)`.

        The modulus is over channels: in complex images, magnitudes shrink and phases stay.
        """
        coefficients = self.analyse(x)
        modulus = torch.linalg.vector_norm(coefficients, dim=1, keepdim=True)
        shrunk = coefficients * (1 - threshold / modulus.clamp(min=1e-12)).clamp(min=0)
        height, width = self.coarsest
        shrunk[..., :height, :width] = coefficients[..., :height, :width]
        return self.synthesise(shrunk)


@checked
class L1Wavelet(Baseline):
    """`min_x 1/2 ||A x - y||^2 + strength sum |details of W x|`, slice by slice, with Haar wavelets `W`.

    Solved by `spinning_fista`, with shifts that reach every position of the coarsest wavelets.

    Args:
        strength: weight of the wavelet coefficients, in units of `sigma_y`.
        iterations: number.
    """

    def __init__(self, strength: Positive = 0.1, iterations: PositiveInt = 200):
        super().__init__(iterations)
        self.strength = strength

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        strength, wavelet = absolute(self.strength, measurement), Wavelet(measurement.operator.zeros())
        period = 2 ** len(wavelet.levels)
        return spinning_fista(measurement, lambda z: wavelet.shrink(z, strength), period, self.iterations)
