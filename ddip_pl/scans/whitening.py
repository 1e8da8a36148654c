"""Prewhitening of receive coils with a noise scan (Pruessmann et al. 2001; Hansen & Kellman 2015)."""

import logging
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)

SINGULAR = 1e-6  # smallest eigenvalue of the coils' correlation


class Whitening(NamedTuple):
    """Coils combined so that their noise is uncorrelated and equally strong.

    Attributes:
        matrix: `(coils, coils)`, to multiply values `(coils, samples)` with.
        sigma: standard deviation of the noise afterwards, `E |n|^2 = sigma^2`. It is the root mean square of the coils
            before, so that intensities stay about the same.
    """

    matrix: np.ndarray
    sigma: float


def whitening(noise: np.ndarray, bandwidth: float = 1.0) -> Whitening | None:
    """The whitening `sigma L^-1` for noise of covariance `L L^H`; None, with a warning, if `L` is singular.

    Args:
        noise: values of a noise scan, `(coils, samples)`, complex.
        bandwidth: noise bandwidth of the scan to whiten, in units of that of the noise scan.
    """
    coils, samples = noise.shape
    noise = noise.astype(np.complex128)
    covariance = bandwidth * noise @ noise.conj().T / max(samples, 1)
    level = np.sqrt(covariance.diagonal().real)
    if samples > coils and level.all() and np.isfinite(level).all():
        smallest = np.linalg.eigvalsh(covariance / np.outer(level, level))[0]
        if smallest > SINGULAR:
            sigma = float(np.sqrt(np.square(level).mean()))
            return Whitening(sigma * np.linalg.inv(np.linalg.cholesky(covariance)), sigma)
    log.warning(
        "the noise readouts are not used: %d samples of %d coils, some without noise or with that of others; the noise "
        "level is estimated",
        samples, coils,
    )  # fmt: skip
    return None
