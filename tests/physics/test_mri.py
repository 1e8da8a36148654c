"""Cartesian MRI against NumPy and SigPy, pseudo-inverses, settings and tasks; for the rest see test_operators.py."""

import itertools
import json
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS, random, smooth_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from operators import CARTESIAN, SIZES, SLICES, dense, random_pair, real, table, volume

from ddip_pl.cli.commands import bad_input
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    LinearOperator,
    RandomLines,
    RandomPoints,
    SingleCoilMRI,
)
from ddip_pl.physics.operator import Shape

# --- pseudo-inverse -------------------------------------------------------------------------------------------


@SIZES
@table({name: make for name, make in CARTESIAN.items() if "single" in name})
def test_pseudo_inverse_of_one_coil_is_exact(make, size):
    """On any data, consistent or not; the truth is NumPy's pseudo-inverse of the dense matrix."""
    operator = make(volume(size)).double()
    _, y = random_pair(operator, torch.float64)
    matrix = dense(operator)
    expected = torch.from_numpy(np.linalg.pinv(matrix.numpy(), rcond=1e-6))
    expected = (expected @ real(y)[..., None])[..., 0]
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), expected, rtol=1e-5, atol=1e-6)


@SIZES
@table({name: make for name, make in CARTESIAN.items() if "SENSE" in name})
def test_pseudo_inverse_of_sense(make, size):
    """It explains consistent data; with many iterations it is the least-squares solution for any data."""
    operator = make(volume(size)).double()
    x, y = random_pair(operator, torch.float64)
    data = operator(x)
    first = (operator(operator.pseudo_inverse(data)) - data).norm() / data.norm()
    assert first < 0.02
    operator.iterations = 200
    expected = torch.linalg.lstsq(dense(operator), real(y)[..., None], driver="gelsd").solution
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), expected[..., 0], rtol=1e-6, atol=1e-6)


# --- against NumPy and SigPy --------------------------------------------------------------------------------


def centred_fft(image):
    """Orthonormal Fourier transform over the last two axes, origins in the middle, by NumPy."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)


@settings(max_examples=20)
@given(height=st.integers(2, 33), width=st.integers(2, 33), seed=st.integers(0, 100))
@pytest.mark.parametrize("complex_image", [False, True])
def test_one_coil_is_the_centred_transform(complex_image, height, width, seed):
    mask = torch.rand(SLICES, height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[:, height // 2, width // 2] = True
    x = random(SLICES, 1 + complex_image, height, width, dtype=torch.float64, seed=seed)
    image = torch.complex(x[:, 0], x[:, 1]) if complex_image else x[:, 0]
    operator = SingleCoilMRI((SLICES, height, width), mask, complex_image).double()
    found = operator.scale * operator(x)
    assert operator.scale == 1
    torch.testing.assert_close(found[:, 0].numpy(), mask.numpy() * centred_fft(image.numpy()), rtol=0, atol=1e-5)
    assert (found[~mask[:, None]] == 0).all()


@settings(max_examples=20)
@given(size=st.tuples(st.integers(4, 20), st.integers(4, 20)), coils=st.integers(1, 5), seed=st.integers(0, 100))
def test_sense_is_that_of_each_coil(size, coils, seed):
    maps = smooth_maps(*size, coils, SLICES, seed)
    mask = RandomPoints(1.5, centre=0, seed=seed)(size)
    operator = SENSE((SLICES, *size), mask, maps).double()
    x = random(SLICES, 2, *size, dtype=torch.float64, seed=seed)
    found = (operator.scale * operator(x)).numpy()
    for i, c in itertools.product(range(SLICES), range(coils)):
        expected = mask.numpy() * centred_fft((maps[i, c] * torch.complex(x[i, 0], x[i, 1])).numpy())
        np.testing.assert_allclose(found[i, c], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 21), (15, 24)])
def test_agrees_with_sigpy(size):
    sigpy = pytest.importorskip("sigpy")
    from sigpy.mri.linop import Sense

    maps, mask = smooth_maps(*size, 5), RandomPoints(3)(size)
    operator = SENSE((1, *size), mask, maps)
    reference = Sense(maps[0].numpy(), weights=mask.numpy().astype(np.float32))
    x, y = random(1, 2, *size), random(1, 5, *size, dtype=torch.complex64)
    image = torch.complex(x[0, 0], x[0, 1]).numpy()
    np.testing.assert_allclose(operator.scale * operator(x)[0].numpy(), reference(image), atol=1e-4)
    back = operator.scale * operator.adjoint(y)[0].numpy()
    np.testing.assert_allclose(back[0] + 1j * back[1], reference.H(y[0].numpy()), atol=1e-4)

    single = SingleCoilMRI((1, *size), torch.ones(size), complex_image=True)
    np.testing.assert_allclose(single(x)[0, 0].numpy(), sigpy.fft(image), atol=1e-4)


def test_a_real_image_needs_half_of_its_spectrum():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:9] = True  # the frequencies -8 .. 0
    x = random(2, 1, 16, 16)
    operator = SingleCoilMRI((2, 16, 16), mask)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), x, rtol=1e-4, atol=1e-5)
    as_complex = SingleCoilMRI((2, 16, 16), mask, complex_image=True)
    zero_filled = as_complex.pseudo_inverse(as_complex(torch.cat([x, 0 * x], 1)))[:, :1]
    assert (zero_filled - x).norm() > 0.3 * x.norm()


def test_scale_is_that_of_the_maps():
    """With twice the sensitivity, the unit-norm operator is the same and the scale doubles."""
    one, two = (SENSE((1, 12, 12), RandomLines(2, centre=0.2), factor * smooth_maps(12, 12)) for factor in (1, 2))
    assert two.scale == pytest.approx(2 * one.scale, rel=1e-4)
    x = random(1, 2, 12, 12)
    torch.testing.assert_close(one(x), two(x), rtol=1e-3, atol=1e-4)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SingleCoilMRI((2, 16, 16), torch.ones(12, 16)), r"mask of shape \(12, 16\) .*expected \(16, 16\), or"),
        (lambda: SingleCoilMRI((2, 16, 16), torch.ones(8, 8)), r"mask of shape \(8, 8\)"),
        (lambda: SingleCoilMRI((2, 16, 16), torch.ones(16)), r"mask of shape \(16,\)"),
        (lambda: SingleCoilMRI((2, 16, 16), torch.ones(1, 1, 16, 16)), r"mask of shape \(1, 1, 16, 16\)"),
        (lambda: SingleCoilMRI((2, 16, 16), torch.ones(3, 16, 16)), r"mask of shape \(3, 16, 16\) for 2 slices"),
        (lambda: SingleCoilMRI((2, 16, 16), torch.zeros(16, 16)), "mask of a slice is all zero"),
        (
            lambda: SingleCoilMRI((2, 16, 16), torch.stack([torch.ones(16, 16), torch.zeros(16, 16)])),
            "mask of a slice is all zero",
        ),
        (lambda: SingleCoilMRI((2, 0, 0), RandomPoints(2)), r"shape is \(2, 0, 0\)"),
        (lambda: SingleCoilMRI((2, 16, 0), RandomPoints(2)), r"shape is \(2, 16, 0\)"),
        (
            lambda: SingleCoilMRI((2, 16, 12), torch.ones(12, 16)),
            r"shape \(12, 16\) for 2 slices of 16 x 12; expected \(16, 12\)",
        ),
        (
            lambda: SENSE((2, 16, 12), RandomLines(2), smooth_maps(12, 16)),
            r"\(1, 6, 12, 16\); expected \(2, coils, 16, 12\), or one",
        ),
        (lambda: SENSE((2, 16, 16), torch.ones(8, 8), smooth_maps(16, 16)), r"mask of shape \(8, 8\)"),
        (
            lambda: SENSE((2, 16, 16), RandomLines(2), smooth_maps(12, 12)),
            r"coil maps of shape \(1, 6, 12, 12\); expected \(2, coils, 16, 16\)",
        ),
        (lambda: SENSE((2, 16, 16), RandomLines(2), smooth_maps(16, 16)[0]), r"coil maps of shape \(6, 16, 16\)"),
        (lambda: SENSE((2, 16, 16), RandomLines(2), 0 * smooth_maps(16, 16)), "coil maps of a slice are all zero"),
        (
            lambda: SENSE((2, 16, 16), RandomLines(2), torch.stack([torch.ones(2, 16, 16), torch.zeros(2, 16, 16)])),
            "coil maps of a slice are all zero",
        ),
        (lambda: SENSE((2, 16, 16), RandomLines(2), smooth_maps(16, 16) * float("nan")), "not finite"),
        (lambda: SENSE((2, 16, 16), RandomLines(2), smooth_maps(16, 16), iterations=0), "SENSE: iterations is 0"),
        (
            lambda: SENSE((3, 16, 16), torch.ones(2, 16, 16), smooth_maps(16, 16, slices=3)),
            r"mask of shape \(2, 16, 16\) for 3 slices",
        ),
        (
            lambda: SENSE((2, 16, 16), torch.ones(2, 16, 16), smooth_maps(16, 16, slices=3)),
            r"coil maps of shape \(3, 6, 16, 16\); expected \(2, coils, 16, 16\)",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def parse_operator(text):
    """The operator from a task's settings, as on the command line."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--operator", type=Callable[[Shape], LinearOperator])
    with warnings.catch_warnings(action="ignore"):  # the method is about to be renamed
        return parser.instantiate_classes(parser.parse_args(["--operator", text])).operator


def test_settings_name_the_mask():
    mask = '{"class_path": "ddip_pl.physics.RandomLines", "init_args": {"acceleration": 4, "centre": 0.1}}'
    operator = parse_operator(
        '{"class_path": "ddip_pl.physics.SingleCoilMRI", "init_args": {"complex_image": true, "mask": ' + mask + "}}"
    )((3, 40, 40))
    assert (operator.shape, operator.channels) == ((3, 40, 40), 2)
    assert torch.equal(operator.mask[0, 0], RandomLines(4, centre=0.1)(40))


def test_what_is_wrong_with_a_mask_reaches_the_user():
    """The parser tries an argument's types in turn and passes on the first error."""
    mask = '{"class_path": "ddip_pl.physics.RandomLines", "init_args": {"acceleration": 0.5}}'
    for operator, rest in ("SingleCoilMRI", ""), ("SENSE", ', "maps": {"class_path": "ddip_pl.physics.Birdcage"}'):
        text = '{"class_path": "ddip_pl.physics.' + operator + '", "init_args": {"mask": ' + mask + rest + "}}"
        with pytest.raises(ValueError, match="Union") as caught:
            parse_operator(text)
        assert "acceleration is 0.5" in (bad_input(caught.value) or "")


@pytest.mark.parametrize(("task", "acceleration", "channels"), [("mri_3d", 8, 1), ("csmri", 4, 2)])
def test_tasks(task, acceleration, channels):
    pytest.importorskip("sigpy")
    data = yaml.safe_load((CONFIGS / "task" / f"{task}.yaml").read_text())["data"]
    operator = parse_operator(json.dumps(data["operator"]))((2, 64, 64))
    assert operator.channels == channels
    assert operator.mask.numel() / operator.mask.sum().item() == pytest.approx(acceleration, rel=0.1)
    assert operator.mask[0, 0, 30:34, 30:34].all()
    assert data["sigma_y"] == 0.01


def test_limited_angle_task():
    """60 angles over a quarter turn; half of all directions are missing."""
    data = yaml.safe_load(CONFIGS.joinpath("task", "lact.yaml").read_text())["data"]
    operator = parse_operator(json.dumps(data["operator"]))((2, 32, 32))
    np.testing.assert_allclose(np.degrees(operator.angles), np.arange(60) * 1.5)


# --- simulation ---------------------------------------------------------------------------------------------


def simulated(path, operator, seed=0):
    torch.manual_seed(seed)
    return VolumeDataModule(str(path), lambda shape: operator, 0.01).simulate(operator.shape[1:]).measurement


def test_a_complex_volume_has_a_smooth_random_phase(phantom_volume):
    shape = (6, 32, 32)
    complex_operator = SENSE(shape, RandomLines(2), smooth_maps(32, 32))
    measurement = simulated(phantom_volume, complex_operator)
    magnitude = simulated(phantom_volume, SingleCoilMRI(shape, RandomLines(2))).reference
    reference = measurement.reference
    assert reference.shape == (6, 2, 32, 32)
    torch.testing.assert_close(reference.norm(dim=1, keepdim=True), magnitude)
    noise = measurement.y - complex_operator(reference)
    assert noise.norm().item() == pytest.approx(measurement.noise_energy().sum().sqrt().item(), rel=0.05)
    assert (noise[~complex_operator.mask.expand_as(noise)] == 0).all()

    image = torch.complex(reference[:, 0], reference[:, 1])
    bright = magnitude[:, 0] > 0.05
    turn = (image[:, 1:] * image[:, :-1].conj()).angle()[bright[:, 1:] & bright[:, :-1]]
    assert 0.01 < turn.abs().max() < 0.8  # from one row to the next
    across = (image[1:] * image[:-1].conj()).angle()[bright[1:] & bright[:-1]]
    assert across.abs().max() < 1e-4  # and from slice to slice

    assert torch.equal(simulated(phantom_volume, complex_operator).reference, reference)
    assert not torch.allclose(simulated(phantom_volume, complex_operator, seed=1).reference, reference)
