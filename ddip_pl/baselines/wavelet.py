"""Sparsity of each slice in an orthonormal wavelet basis (compressed sensing; Lustig, Donoho & Pauly 2007)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddip_pl.baselines.baseline import Baseline, Step, absolute, warn_unless_converged
from ddip_pl.physics.measurement import Measurement

# Daubechies' low-pass filter with four vanishing moments (Ten Lectures on Wavelets, table 6.1).
DB4 = (0.2303778133088964, 0.7148465705529154, 0.6308807679298587, -0.0279837694168599,
       -0.1870348117190931, 0.0308413818355607, 0.0328830116668852, -0.0105974017850690)  # fmt: skip
COARSEST = 8  # pixels


def one_level(length: int) -> Tensor:
    """One level of the periodic transform as an orthonormal matrix: `length / 2` averages, then as many details."""
    low = torch.tensor(DB4, dtype=torch.float64)
    high = low.flip(0) * torch.tensor([1.0, -1.0]).repeat(len(low) // 2)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for row in range(length // 2):
        columns = (2 * row + torch.arange(len(low))) % length
        matrix[row].index_add_(0, columns, low)
        matrix[length // 2 + row].index_add_(0, columns, high)
    return matrix


class Wavelet:
    """Orthonormal 2D wavelet transform of images, with periodic border.

    Rows and columns are halved as long as both are even and their halves have at least 8 pixels.

    Args:
        like: an image, for height, width, precision and device.
    """

    def __init__(self, like: Tensor):
        height, width = like.shape[-2:]
        self.levels = []
        while height % 2 == width % 2 == 0 and min(height, width) >= 2 * COARSEST:
            self.levels.append((one_level(height).to(like), one_level(width).to(like)))
            height, width = height // 2, width // 2
        self.coarsest = height, width

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients of images `(..., height, width)`, of the same shape; the averages are in the first corner."""
        x = x.clone()
        for rows, columns in self.levels:
            block = x[..., : len(rows), : len(columns)]
            block.copy_(rows @ block @ columns.T)
        return x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Inverse and adjoint of `analyse`."""
        x = coefficients.clone()
        for rows, columns in reversed(self.levels):
            block = x[..., : len(rows), : len(columns)]
            block.copy_(rows.T @ block @ columns)
        return x

    def shrink(self, x: Tensor, threshold: float) -> Tensor:
        """Proximal operator of `threshold sum |details|` at images `(slices, channels, height, width)`.

        The modulus is over channels: of complex images, magnitudes shrink and phases stay.
        """
        coefficients = self.analyse(x)
        modulus = torch.linalg.vector_norm(coefficients, dim=1, keepdim=True)
        shrunk = coefficients * (1 - threshold / modulus.clamp(min=1e-12)).clamp(min=0)
        height, width = self.coarsest
        shrunk[..., :height, :width] = coefficients[..., :height, :width]
        return self.synthesise(shrunk)


class L1Wavelet(Baseline):
    """`min_x 1/2 ||A x - y||^2 + strength sum |details of W x|`, slice by slice, with Daubechies-4 wavelets `W`.

    By FISTA with step 1, as `||A|| = 1` (Beck & Teboulle 2009), that starts anew whenever momentum points uphill
    (O'Donoghue & Candes 2015).

    Args:
        strength: weight of the wavelet coefficients, in units of `sigma_y`.
        tolerance: relative change of the images in one iteration at which it has converged.
        iterations: at most; a line says so if it has not converged by then.
    """

    def __init__(self, strength: float = 0.1, tolerance: float = 1e-5, iterations: int = 2000):
        super().__init__(iterations)
        self.strength, self.tolerance = strength, tolerance

    @torch.no_grad()
    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        strength = absolute(self.strength, measurement)
        x = z = measurement.operator.pseudo_inverse(measurement.y)
        wavelet, momentum = Wavelet(x), 1.0
        for _ in range(self.iterations):
            gradient = measurement.operator.adjoint(measurement.residual(z))
            before, x = x, wavelet.shrink(z - gradient, strength)
            change = float((x - z).norm() / x.norm().clamp(min=1e-12))
            yield x, {"change": change}
            if change < self.tolerance:
                break
            if ((z - x) * (x - before)).sum() > 0:
                momentum = 1.0
            earlier, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            z = x + (earlier - 1) / momentum * (x - before)
        warn_unless_converged(change, self.tolerance, self.iterations)
