"""SigPy: its operators measure for us, and its solvers reconstruct what ours measured."""

import numpy as np
import pytest
import sigpy
import torch
from helpers import random, smooth_maps
from sigpy import linop
from sigpy.mri.linop import Sense

from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, Birdcage, LinearOperator, ParallelBeamCT, RandomLines
from ddip_pl.physics.sigpy import SigPyOperator, to_complex, to_sigpy

SHAPE = (3, 24, 20)


@pytest.fixture(scope="module")
def sense() -> SigPyOperator:
    """Three coils, half of the lines."""
    maps = smooth_maps(24, 20, coils=3)[0].numpy().astype(np.complex64)
    weights = (np.arange(20) % 2 == 0).astype(np.float32) * np.ones((24, 1), np.float32)
    return SigPyOperator(Sense(maps, weights=weights), slices=3)


def test_a_linop_measures_each_slice(sense: SigPyOperator) -> None:
    x = random(3, 2, 24, 20)
    expected = np.stack([sense.linop(image) for image in to_complex(x).numpy()])
    assert torch.allclose(sense(x), torch.from_numpy(expected), atol=1e-5)
    checked = sense.check()
    assert checked.adjointness < 1e-5
    assert sense.normalised().norm == pytest.approx(1, rel=1e-2)
    part = sense.select([2, 0])
    assert torch.allclose(part(x[[2, 0]]), sense(x)[[2, 0]])


def test_least_squares_is_that_of_sigpy(sense: SigPyOperator) -> None:
    y = sense(random(3, 2, 24, 20))
    ours = to_complex(sense.solve(sense.adjoint(y), 100, damping=0.1))
    app = sigpy.app.LinearLeastSquares(sense.linop, y[0].numpy(), lamda=0.1, max_iter=200, show_pbar=False)
    np.testing.assert_allclose(ours[0].numpy(), app.run(), atol=1e-3)


@pytest.mark.parametrize(
    "operator", [SENSE(SHAPE, RandomLines(2), Birdcage(3)), ParallelBeamCT((3, 24, 24), 10)], ids=["coils", "ct"]
)
def test_ours_for_sigpy(operator: LinearOperator) -> None:
    wrapped = to_sigpy(operator)
    rng = np.random.default_rng(0)
    slices, height, width = operator.shape
    x = rng.standard_normal((slices, height, width)) + 1j * rng.standard_normal((slices, height, width))
    x = (x if operator.channels == 2 else x.real).astype(np.complex64)
    y = (rng.standard_normal(wrapped.oshape) + (1j if operator.channels == 2 else 0)).astype(np.complex64)
    left, right = np.vdot(wrapped(x), y), np.vdot(x, wrapped.H(y))
    assert left.real == pytest.approx(right.real, rel=1e-4)
    measured = wrapped(x)
    app = sigpy.app.LinearLeastSquares(wrapped, measured, lamda=0.05, max_iter=100, show_pbar=False)
    values = torch.from_numpy(measured) if operator.channels == 2 else torch.from_numpy(measured.real.copy())
    ours = operator.solve(operator.adjoint(values), 100, damping=0.05)
    expected = to_complex(ours).numpy() if operator.channels == 2 else ours[:, 0].numpy()
    np.testing.assert_allclose(app.run(), expected, atol=5e-3)


def test_a_linop_of_volumes_is_refused() -> None:
    with pytest.raises(InputError, match=r"FFT takes arrays of shape \(3, 24, 20\); expected \(height, width\)"):
        SigPyOperator(linop.FFT([3, 24, 20]))
