"""Coil maps, simulated and calibrated."""

import pytest
import torch

from ddip_pl.errors import InputError
from ddip_pl.physics import Birdcage, espirit
from ddip_pl.physics.espirit import espirit_maps
from ddip_pl.physics.fft import fft
from ddip_pl.physics.sensitivity import normalise_maps


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_normalised_maps():
    maps = random(2, 3, 8, 8)
    maps[:, :, :2] = 0
    maps[:, :, 2:4] *= 1e-30  # the squares underflow in float32
    found = normalise_maps(maps)
    length = found.abs().square().sum(1)
    assert (length[:, :2] == 0).all()
    torch.testing.assert_close(length[:, 4:], torch.ones(2, 4, 8))
    torch.testing.assert_close(found[:, :, 4:].angle(), maps[:, :, 4:].angle())


@pytest.mark.parametrize("coils", [1, 4, 8])
def test_birdcage(coils):
    sim = pytest.importorskip("sigpy.mri")
    maps = Birdcage(coils)(32)
    assert maps.dtype == torch.complex64
    assert maps.shape == (1, coils, 32, 32)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(1, 32, 32))
    expected = torch.from_numpy(sim.birdcage_maps((coils, 32, 32))).to(torch.complex64)
    torch.testing.assert_close(maps[0], expected)


def test_birdcage_of_an_image_that_is_not_square():
    sim = pytest.importorskip("sigpy.mri")
    expected = torch.from_numpy(sim.birdcage_maps((4, 24, 40))).to(torch.complex64)
    torch.testing.assert_close(Birdcage(4)((24, 40))[0], expected)


def test_each_coil_sees_another_side():
    pytest.importorskip("sigpy")
    brightest = Birdcage(4)(32)[0].abs().flatten(1).argmax(1)
    sides = torch.stack([brightest // 32, brightest % 32], 1)
    assert len(sides.div(8, rounding_mode="floor").unique(dim=0)) == 4


def test_a_wider_ring_is_smoother():
    pytest.importorskip("sigpy")
    near, far = (Birdcage(8, radius)(32)[0].abs().std((1, 2)).mean() for radius in (1.2, 5.0))
    assert far < 0.5 * near


def test_espirit_finds_the_maps_of_a_birdcage():
    """Up to a phase, which the image absorbs; slice by slice, because the second slice has other coils."""
    pytest.importorskip("sigpy")
    size = 48
    maps = torch.cat([Birdcage(6)(size), Birdcage(6, radius=1.2)(size)])
    grid = torch.arange(size) - size / 2
    disc = torch.hypot(grid[:, None], grid) < 0.4 * size
    image = disc * (1 + 0.3 * torch.cos(grid / 5))
    kspace = fft(maps * image)

    found = espirit(kspace)

    assert found.shape == maps.shape
    assert found.dtype == torch.complex64
    inside = torch.hypot(grid[:, None], grid) < 0.35 * size
    alignment = (found.conj() * maps).sum(1).abs()[:, inside]
    assert alignment.min() > 0.98
    assert (alignment.mean(1) > 0.995).all()
    length = found.abs().square().sum(1)
    assert torch.logical_or(length == 0, (length - 1).abs() < 1e-4).all()


@pytest.mark.parametrize(("coils", "size"), [(1, (40, 40)), (5, (48, 36)), (8, (33, 64))])
def test_espirit_agrees_with_sigpy(coils, size):
    """Noise, an object that leaves part of the image empty, sizes that are odd or not square."""
    sigpy = pytest.importorskip("sigpy.mri.app")
    y, x = (torch.linspace(-1, 1, n) for n in size)
    image = (torch.hypot(1.3 * y[:, None], x + 0.1) < 0.8) * torch.exp(1j * x) * (1 + 0.3 * torch.cos(6 * y))[:, None]
    kspace = fft(Birdcage(coils)(size) * image) + 0.003 * random(1, coils, *size)
    for calibration, crop in (24, 0.95), (16, 0.8):
        found = espirit(kspace, calibration, crop)
        calib = sigpy.EspiritCalib(kspace[0].numpy(), calib_width=calibration, crop=crop, max_iter=300, show_pbar=False)
        expected = normalise_maps(torch.from_numpy(calib.run())[None])
        assert 0.2 < (expected[0, 0] != 0).float().mean() < 0.98
        assert ((found != 0) != (expected != 0)).sum() <= 2 * coils
        both = ((found != 0) & (expected != 0)).expand_as(found)
        torch.testing.assert_close(found[both], expected[both], atol=2e-3, rtol=0)


def test_maps_from_a_narrow_centre_cover_the_object():
    """A ring around a darker disc. With 10 lines, few eigenvalues are near 1, so the usual bound leaves few pixels."""
    pytest.importorskip("sigpy")
    size = 64
    maps = Birdcage(6)(size)
    radius = torch.hypot(*torch.meshgrid(*2 * [torch.arange(size) - size / 2], indexing="ij")) / size
    kspace = fft(maps * ((radius < 0.4) * (0.3 + 0.7 * (radius > 0.35))))
    kspace = kspace + 0.01 * random(*kspace.shape)
    usual = espirit_maps(kspace[0, :, 27:37, 27:37], size, size, 0.95)
    found = espirit(kspace, calibration=10)
    disc = radius < 0.3
    assert (usual.abs().sum(0) > 0)[disc].float().mean() < 0.5
    assert (found[0].abs().sum(0) > 0)[disc].float().mean() > 0.95
    alignment = (found.conj() * maps).sum(1).abs()[0, disc]
    assert alignment[alignment > 0].mean() > 0.95


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"coils": 0}, "coils is 0; give a whole number from 1"),
        ({"radius": 1.0}, r"radius is 1\.0"),
        ({"radius": float("nan")}, "radius is nan"),
    ],
)
def test_bad_birdcage(bad, message):
    with pytest.raises(InputError, match=message):
        Birdcage(**bad)


@pytest.mark.parametrize(
    ("kspace", "calibration", "message"),
    [
        (random(4, 16, 16), 16, r"\(4, 16, 16\).*expected \(slices, coils, ky, kx\), complex"),
        (torch.zeros(1, 4, 16, 16), 16, r"torch\.float32; expected"),
        (random(1, 4, 16, 16), 24, "calibration is 24; give a width between 8 and 16"),
        (random(1, 4, 16, 16), 4, "calibration is 4"),
        (0 * random(1, 4, 16, 16), 16, "all zero"),
        (torch.cat([random(1, 4, 16, 16), 0 * random(1, 4, 16, 16)]), 16, "of a slice is all zero"),
    ],
)
def test_bad_calibration_data(kspace, calibration, message):
    with pytest.raises(InputError, match=message) as caught:
        espirit(kspace, calibration)
    assert "\n" not in str(caught.value)
