"""Figures of merit against NumPy and SciPy, and pictures."""

import itertools
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from ddip_pl.evaluation import metrics
from ddip_pl.evaluation.metrics import by_slice, perceptual_distance, summary
from ddip_pl.evaluation.pictures import compare, planes
from ddip_pl.volumes.frame import magnitude


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 1, 24, 20, generator=generator)
    return truth + 0.1 * torch.randn(truth.shape, generator=generator), truth


def scipy_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004 with a uniform 7 x 7 window and data range 1, images mirrored at their border."""
    c1, c2 = 0.01**2, 0.03**2

    def mean(image: np.ndarray) -> np.ndarray:
        return uniform_filter(image.astype(np.float64), 7, mode="mirror")

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    cov = mean(x * y) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(ssim.mean())


def test_figures_are_those_of_numpy_and_scipy(pair: tuple[Tensor, Tensor]) -> None:
    images, truth = pair
    clipped, reference = images.clamp(0, 1).numpy()[:, 0], truth.numpy()[:, 0]
    rows = by_slice(images, truth)
    assert [row["slice"] for row in rows] == [0, 1, 2]
    for row, x, y in zip(rows, clipped, reference, strict=True):
        assert row["psnr"] == pytest.approx(-10 * np.log10(((x - y) ** 2).mean()), abs=1e-3)
        assert row["ssim"] == pytest.approx(scipy_ssim(x, y), abs=2e-3)
    volume = summary(images, truth)
    assert volume["psnr"] == pytest.approx(-10 * np.log10(((clipped - reference) ** 2).mean()), abs=1e-3)
    assert volume["ssim"] == pytest.approx(np.mean([row["ssim"] for row in rows]), abs=1e-6)
    assert summary(images, truth, rows) == volume


def test_the_range_is_one_whatever_the_images_hold(pair: tuple[Tensor, Tensor]) -> None:
    """A range taken from the reconstruction or the reference would make these equal."""
    images, truth = pair
    assert summary(0.1 * images, 0.1 * truth)["psnr"] == pytest.approx(summary(images, truth)["psnr"] + 20, abs=1.5)


def test_complex_images_are_judged_by_magnitude(pair: tuple[Tensor, Tensor]) -> None:
    images, truth = pair
    turned = torch.cat([0.6 * truth, 0.8 * truth], dim=1)
    assert torch.allclose(magnitude(turned), truth)
    assert summary(torch.cat([images.clamp(min=0), 0 * images], dim=1), turned) == pytest.approx(summary(images, truth))


@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_planes_are_the_central_cuts_as_radiologists_see_them(signs: tuple[int, int, int]) -> None:
    ras = np.arange(5 * 7 * 9).reshape(5, 7, 9)  # to the patient's right, front and head
    stored = ras[tuple(slice(None, None, sign) for sign in signs)].transpose(2, 1, 0)  # slices, rows, columns
    affine = np.diag([*signs, 1.0])
    axial, coronal, sagittal = planes(stored, affine)
    assert np.array_equal(axial, ras[::-1, ::-1, 4].T)
    assert np.array_equal(coronal, ras[::-1, 3, ::-1].T)
    assert np.array_equal(sagittal, ras[2, ::-1, ::-1].T)


def test_planes_of_slices_in_another_plane() -> None:
    volume, affine = np.arange(3 * 5 * 7).reshape(3, 5, 7), np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2] = 1, -1, 1  # columns to the front, rows downwards, slices to the right
    assert np.array_equal(planes(volume, affine)[0], volume[1, :, ::-1])


@pytest.mark.parametrize("with_reference", [True, False])
def test_picture_is_written_and_shows_something(
    pair: tuple[Tensor, Tensor], tmp_path: Path, with_reference: bool
) -> None:
    images, truth = pair
    path, metrics = tmp_path / "planes.png", {"input": summary(images, truth), "d3ip": summary(0.9 * truth, truth)}
    affine = np.diag([1.0, -1.0, 2.0, 1.0])
    compare({"input": images, "d3ip": 0.9 * truth}, truth if with_reference else None, metrics, affine, path)
    picture = matplotlib.image.imread(path)
    assert picture.shape[1] == pytest.approx(2.8 * 110 * (4 if with_reference else 2), abs=1)
    assert picture[..., :3].std() > 0.1


def test_perceptual_distance_where_it_can_be_had(
    pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stand_in(x: Tensor, truth: Tensor, network: str, normalize: bool) -> Tensor:
        assert x.shape[1:] == truth.shape[1:] == (3, 24, 20)
        assert ((x >= 0) & (x <= 1)).all()
        assert normalize
        return (x - truth).abs().mean()

    def no_weights(*_: object, **__: object) -> Tensor:
        raise OSError("no route to host")

    images, truth = (x.repeat(4, 1, 1, 1)[:11] for x in pair)  # more than one batch
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    assert perceptual_distance(images, truth) is None
    monkeypatch.setattr(metrics, "find_spec", lambda name: name)
    monkeypatch.setattr(metrics, "lpips", stand_in)
    expected = float((images.clamp(0, 1) - truth).abs().mean())
    assert perceptual_distance(images, truth) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(metrics, "lpips", no_weights)
    assert perceptual_distance(images, truth) is None
    assert "LPIPS is left out: no route to host" in caplog.text
