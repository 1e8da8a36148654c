"""The noise level of a measurement, estimated from the measurement itself."""

import numpy as np
import torch
from torch import Tensor

OUTERMOST = 0.05  # share of the measured k-space that is treated as noise
MEDIAN = 0.6744897501960817  # of the absolute value of a standard normal variable
SMOOTH = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0])  # fourth difference; 0 for cubic polynomials


def kspace_noise(y: Tensor, radius: Tensor) -> float:
    """Standard deviation of the noise in k-space, `E |n|^2 = sigma^2`; the root mean square over coils.

    This is the median absolute deviation of each coil at the outermost measured frequencies, where an image has the
    least energy. It is too high if that energy exceeds the noise, as in images with sharp edges and almost no noise.

    Args:
        y: `(slices, coils, samples)`, complex.
        radius: `(slices or 1, samples)`, distance from the zero frequency in any unit; nan if not measured.
    """
    limits = np.nanquantile(radius.numpy(force=True), 1 - OUTERMOST, axis=1, keepdims=True)
    outer = (radius >= torch.from_numpy(limits).to(radius)).expand(len(y), -1)
    levels = [torch.view_as_real(coil[outer]).abs().median() / MEDIAN for coil in y.unbind(1)]
    return float(torch.stack(levels).square().mean().mul(2).sqrt())  # variance of both parts of a complex value


def sinogram_noise(y: Tensor) -> float:
    """Standard deviation of the noise in sinograms `(slices, 1, angles, detectors)`; nan with fewer than 5 detectors.

    This is the median absolute deviation of fourth differences between neighbouring detectors, which noise determines
    and a smooth object hardly affects. It is too high if the object is rough and there is almost no noise, and too low
    if the noise of neighbouring detectors is correlated.
    """
    kernel = (SMOOTH / SMOOTH.norm()).to(y)
    differences = (y.unfold(-1, len(kernel), 1) * kernel).sum(-1) if y.shape[-1] >= len(kernel) else y[..., :0]
    return float(differences[differences != 0].abs().median() / MEDIAN)  # 0: nothing was measured there
