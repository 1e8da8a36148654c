"""The centred Fourier transform, against the explicit sum."""

import numpy as np
import pytest
import torch
from helpers import random
from hypothesis import given, settings
from hypothesis import strategies as st

from ddip_pl.physics.fft import fft, ifft, phases

SIZES = {"height": st.integers(1, 12), "width": st.integers(1, 12)}


def matrix(n: int) -> np.ndarray:
    """The transform of `n` values, origins in the middle."""
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / n**0.5


@settings(max_examples=20)
@given(**SIZES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_is_the_sum_over_the_image(library, height, width):
    image = random(2, height, width, dtype=torch.complex128)
    given = image.numpy() if library == "numpy" else image
    kspace = fft(given)
    assert type(kspace) is type(given)
    np.testing.assert_allclose(np.asarray(kspace), matrix(height) @ image.numpy() @ matrix(width).T, atol=1e-12)
    np.testing.assert_allclose(np.asarray(ifft(kspace)), image.numpy(), atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2, -3])
def test_along_one_axis(axis):
    image = random(4, 5, 6, dtype=torch.complex64).numpy()
    kspace = fft(image, (axis,))
    assert kspace.dtype == np.complex64
    expected = np.moveaxis(np.tensordot(matrix(image.shape[axis]), image, (1, axis)), 0, axis)
    np.testing.assert_allclose(kspace, expected, atol=1e-5)
    np.testing.assert_allclose(ifft(kspace, (axis,)), image, atol=1e-6)


@settings(max_examples=20)
@given(**SIZES)
def test_phases_do_what_shifts_do(height, width):
    image = random(2, height, width, dtype=torch.complex128)
    diagonal, factor = phases(height, width)
    torch.testing.assert_close(factor * diagonal * torch.fft.fft2(diagonal * image, norm="ortho"), fft(image))
