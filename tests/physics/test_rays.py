"""Without ASTRA: the system matrices are ASTRA's, and everything else works."""

import math
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from ddip_pl.physics import FanBeamCT, ParallelBeamCT, projector
from ddip_pl.physics.geometry import plane_vectors
from ddip_pl.physics.rays import joseph, siddon, system_matrix

OPERATORS = {
    "parallel": lambda size: ParallelBeamCT((1, size, size), 12),
    "between the axes": lambda size: ParallelBeamCT((1, size, size), 0.05 + np.arange(9) * 0.4),
    "few wide bins": lambda size: ParallelBeamCT((1, size, size), 8, detectors=size // 2, spacing=2.5),
    "fan": lambda size: FanBeamCT((1, size, size), 12),  # some rays along borders of pixels
    "fan, between the axes": lambda size: FanBeamCT((1, size, size), 0.05 + np.arange(9) * 0.7),
    "fan, odd number of bins": lambda size: FanBeamCT((1, size, size), 8, detectors=2 * size + 1, spacing=0.8),
}


@pytest.mark.parametrize("size", [15, 32])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_matrix_is_that_of_astra(name, size):
    pytest.importorskip("astra")
    A = OPERATORS[name](size)
    expected = projector._build_with_astra(A.discretisation, A.beam, size, A._geometry)
    found = system_matrix(A.discretisation, size, A.detectors, plane_vectors(A._geometry))
    assert found.shape == expected.shape
    if "fan" not in name or "between" in name:  # of a ray along a border, ASTRA's rounding decides
        assert abs(found - expected).power(2).sum() < 1e-3**2 * expected.power(2).sum()
    axis = np.linspace(-1, 1, size)
    image = np.exp(-3 * ((axis - 0.2) ** 2 + 2 * axis[:, None] ** 2)).ravel()
    assert np.linalg.norm((found - expected) @ image) < 0.01 * np.linalg.norm(expected @ image)


def test_unusual_geometries_are_those_of_astra():
    """A shifted detector: ASTRA gets vectors for each view."""
    pytest.importorskip("astra")
    geometry = ParallelBeamCT((1, 16, 16), 9)._geometry | {"detector_offset": 1.3}
    expected = projector._build_with_astra("linear", "parallel", 16, geometry)
    found = system_matrix("linear", 16, geometry["detectors"], plane_vectors(geometry))
    assert abs(found - expected).power(2).sum() < 1e-3**2 * expected.power(2).sum()
    centred = system_matrix(
        "linear", 16, geometry["detectors"], plane_vectors(ParallelBeamCT((1, 16, 16), 9)._geometry)
    )
    assert abs(centred - expected).power(2).sum() > 0.1 * expected.power(2).sum()


def test_lengths_within_pixels():
    """A ray along the diagonal, and one through the middle of a column."""
    points, directions = np.array([[0.0, 0.0], [0.5, 0.0]]), np.array([[2.0, 2.0], [0.0, -3.0]])
    lengths = siddon(4, points, directions).toarray().reshape(2, 4, 4)
    np.testing.assert_allclose(lengths[0], math.sqrt(2) * np.fliplr(np.eye(4)), atol=1e-6)
    np.testing.assert_allclose(lengths[1], [[0, 0, 1, 0]] * 4, atol=1e-6)


def test_interpolation_between_pixels():
    """A ray a quarter of the way from one column of centres to the next, and one that leaves the image."""
    points, directions = np.array([[0.75, 0.0], [1.75, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    weights = joseph(4, points, directions).toarray().reshape(2, 4, 4)
    np.testing.assert_allclose(weights[0], [[0, 0, 0.75, 0.25]] * 4)
    np.testing.assert_allclose(weights[1], [[0, 0, 0, 0.75]] * 4)


def test_everything_works_without_astra(tmp_path):
    """In a process that cannot import it: operators, their adjoints, their ODL geometry, and a reconstruction."""
    code = f"""
import sys
sys.modules["astra"] = None
import torch, ddip_pl
from ddip_pl.physics import ParallelBeamCT, FanBeamCT, simulate
for cls in ParallelBeamCT, FanBeamCT:
    A = cls((2, 16, 16), 20, cache_dir={str(tmp_path)!r})
    assert A.check().adjointness < 1e-5
    again = cls((2, 16, 16), geometry=A.geometry, cache_dir={str(tmp_path)!r})
    x = torch.zeros(2, 1, 16, 16)
    x[:, :, 4:11, 5:9] = 0.8
    torch.testing.assert_close(A(x), again(x), rtol=1e-3, atol=1e-4)
    y = simulate(x, A, 0.01)
    result = ddip_pl.reconstruct(y, A, sigma_y=0.01, method="admm_tv", progress=False, iterations=50)
    error = float((result.images - x).norm() / x.norm())
    assert error < 0.2, error
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), done.stderr
