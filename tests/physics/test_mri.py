"""All operators, from one table: adjoint, norm, pseudo-inverse, gradients, devices; MRI against NumPy and SigPy."""

import itertools
import json
import math
import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from ddip_pl.cli.commands import bad_input
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    ConeBeamCT,
    EquispacedLines,
    FanBeamCT,
    LinearOperator,
    Measurement,
    NonCartesianMRI,
    ParallelBeamCT,
    Radial,
    RandomLines,
    RandomPoints,
    SingleCoilMRI,
    Spiral,
    simulate,
)
from ddip_pl.physics.operator import height_width

SLICES = 3


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def smooth_maps(size, coils=6, slices=1, seed=0):
    """Random smooth maps `(slices, coils, height, width)`, complex64, other ones for each slice, not normalised."""
    spectrum = torch.zeros(slices, coils, *height_width(size), dtype=torch.complex64)
    spectrum[..., :3, :3] = random(slices, coils, 3, 3, dtype=torch.complex64, seed=seed)
    return torch.fft.ifft2(spectrum, norm="forward") + 0.3


def half_masks(size):
    """One mask a slice, of all but every second, third and fourth line."""
    lines = torch.ones(SLICES, *height_width(size), dtype=torch.bool)
    for i in range(SLICES):
        lines[i, :, :: i + 2] = False
    return lines


def without_pairs(size):
    """Of each pair of positions k and -k only one, and the middle not at all."""
    height, width = height_width(size)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[1 : height // 2, 1:] = True
    return mask


# What makes an operator for an image size, by name. To be added to when there is a new modality.
OPERATORS: dict[str, Callable[[int], LinearOperator]] = {
    "CT": lambda n: ParallelBeamCT(n, 7),
    "CT, limited angle": lambda n: ParallelBeamCT(n, 6, angular_range=1.5),
    "CT, fan beam": lambda n: FanBeamCT(n, 9, iterations=3),
    "CT, cone beam": lambda n: ConeBeamCT(n, 7, slices=SLICES, iterations=3),
    "single coil, real": lambda n: SingleCoilMRI(n, RandomPoints(2)),
    "single coil, real, no pairs": lambda n: SingleCoilMRI(n, without_pairs(n)),
    "single coil, real, masks": lambda n: SingleCoilMRI(n, half_masks(n)),
    "single coil, complex": lambda n: SingleCoilMRI(n, RandomPoints(2), complex_image=True),
    "single coil, complex, masks": lambda n: SingleCoilMRI(n, half_masks(n), complex_image=True),
    "SENSE": lambda n: SENSE(n, RandomLines(1.5, centre=0.2), smooth_maps(n)),
    "SENSE, masks": lambda n: SENSE(n, half_masks(n), smooth_maps(n)),
    "SENSE, maps": lambda n: SENSE(n, EquispacedLines(1.5, centre=0.2), smooth_maps(n, slices=SLICES)),
    "radial": lambda n: NonCartesianMRI(n, Radial(n)),
    "radial, coils": lambda n: NonCartesianMRI(n, Radial(n), smooth_maps(n)),
    "spiral, maps": lambda n: NonCartesianMRI(n, Spiral(3, 1.5), smooth_maps(n, slices=SLICES)),
    "SENSE, masks and maps": lambda n: SENSE(n, half_masks(n), smooth_maps(n, slices=SLICES)),
}
BY_CG = SENSE | NonCartesianMRI | FanBeamCT | ConeBeamCT  # pseudo-inverse by conjugate gradients, which are not linear
NON_CARTESIAN = ["radial", "radial, coils", "spiral, maps"]
NOT_SQUARE = "single coil, real", "single coil, real, no pairs", "single coil, complex", "SENSE, masks and maps"
for name in NOT_SQUARE:  # even by odd, or odd by even
    OPERATORS[f"{name}, not square"] = lambda n, make=OPERATORS[name]: make((n, n - 3))
MRI = {name: make for name, make in OPERATORS.items() if "CT" not in name}
PER_SLICE = [name for name in OPERATORS if "maps" in name or "masks" in name]
SIZES = pytest.mark.parametrize("size", [12, 13])


def table(operators):
    return pytest.mark.parametrize("make", operators.values(), ids=operators.keys())


def random_pair(operator, dtype=torch.float32, seed=0):
    """An image and a measurement of noise, for as many slices as the operator may have."""
    x = random(SLICES, operator.channels, *height_width(operator.image_size), dtype=dtype, seed=seed)
    y = operator(x)
    return x, random(*y.shape, dtype=y.dtype, seed=seed + 1)


def inner(a, b):
    """Real inner product, that of complex numbers as pairs of real ones."""
    return (a * b.conj()).sum().real


def dense(operator):
    """The matrix of each slice, or of the coupled ones, `(systems, values, pixels)` real, complex values as pairs."""
    shape = operator.coupled, operator.channels, *height_width(operator.image_size)
    columns = []
    for pixel in torch.eye(math.prod(shape), dtype=torch.float64):
        x = pixel.view(shape).repeat(SLICES // operator.coupled, 1, 1, 1)
        y = operator(x)
        columns.append((torch.view_as_real(y) if y.is_complex() else y).flatten(1))
    return torch.stack(columns, dim=2)


# --- one table for all operators ----------------------------------------------------------------------------


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
@SIZES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@table(OPERATORS)
def test_adjoint(make, dtype, tolerance, size, seed):
    operator = make(size).to(dtype)
    x, y = random_pair(operator, dtype, seed)
    ax, aty = operator(x), operator.adjoint(y)
    assert aty.dtype == dtype
    assert aty.shape == x.shape
    assert abs(inner(ax, y) - inner(x, aty)) <= tolerance * ax.norm() * y.norm()


@SIZES
@table(OPERATORS)
def test_unit_norm(make, size):
    norms = torch.linalg.matrix_norm(dense(make(size).double()), 2)
    assert norms.max().item() == pytest.approx(1, abs=2e-3)


@table(OPERATORS)
def test_superposition(make):
    operator = make(12).double()
    (x, y), (u, v) = random_pair(operator, torch.float64), random_pair(operator, torch.float64, seed=5)
    torch.testing.assert_close(operator(2 * x - u), 2 * operator(x) - operator(u))
    for apply in operator.adjoint, operator.pseudo_inverse:
        if apply == operator.adjoint or not isinstance(operator, BY_CG):
            torch.testing.assert_close(apply(2 * y - v), 2 * apply(y) - apply(v))


@SIZES
@table({name: make for name, make in MRI.items() if "single" in name})
def test_pseudo_inverse_of_one_coil_is_exact(make, size):
    """On any data, consistent or not; the truth is NumPy's pseudo-inverse of the dense matrix."""
    operator = make(size).double()
    _, y = random_pair(operator, torch.float64)
    matrix = dense(operator)
    expected = torch.from_numpy(np.linalg.pinv(matrix.numpy(), rcond=1e-6))
    expected = (expected @ torch.view_as_real(y).flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), expected, rtol=1e-5, atol=1e-6)


@SIZES
@table({name: make for name, make in MRI.items() if "SENSE" in name})
def test_pseudo_inverse_of_sense(make, size):
    """On consistent data it explains them; with many iterations it is the least-squares solution of any data."""
    operator = make(size).double()
    x, y = random_pair(operator, torch.float64)
    data = operator(x)
    first = (operator(operator.pseudo_inverse(data)) - data).norm() / data.norm()
    assert first < 0.02
    operator.iterations = 200
    expected = torch.linalg.lstsq(dense(operator), torch.view_as_real(y).flatten(1)[..., None], driver="gelsd").solution
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), expected[..., 0], rtol=1e-6, atol=1e-6)


@table({name: make for name, make in OPERATORS.items() if "no pairs" not in name})
def test_gradients(make):
    operator = make(6).double()
    x, y = (tensor.requires_grad_() for tensor in random_pair(operator, torch.float64))
    assert torch.autograd.gradcheck(operator, x, fast_mode=True)
    assert torch.autograd.gradcheck(operator.adjoint, y, fast_mode=True)
    assert torch.autograd.gradcheck(operator.pseudo_inverse, y, fast_mode=True)
    (gradient,) = torch.autograd.grad(operator(x).abs().square().sum() / 2, x)
    exact = not isinstance(operator, NonCartesianMRI)  # whose normal operator is no product of the other two
    torch.testing.assert_close(gradient, operator.normal(x), **({} if exact else {"rtol": 1e-4, "atol": 1e-4}))


@table(OPERATORS)
def test_precision(make):
    operator = make(12)
    x, y = random_pair(operator)
    single = operator(x), operator.adjoint(y), operator.pseudo_inverse(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close((operator(x), operator.adjoint(y), operator.pseudo_inverse(y)), single)
        assert operator(x.bfloat16()).dtype == single[0].dtype
    assert operator.adjoint(y.to(torch.complex128 if y.is_complex() else torch.float64)).dtype == torch.float32
    operator.to(torch.float64)
    x, y = x.double(), y.to(torch.complex128 if y.is_complex() else torch.float64)
    double = operator(x), operator.adjoint(y), operator.pseudo_inverse(y)
    for found, expected in zip(double, single, strict=True):
        assert found.dtype == (torch.complex128 if expected.is_complex() else torch.float64)
        torch.testing.assert_close(found.to(expected.dtype), expected, rtol=1e-4, atol=1e-4)


@table({name: make for name, make in MRI.items() if name not in NON_CARTESIAN})  # torchkbnufft looks at its values
def test_meta_device(make):
    operator = make(12)
    x, y = random_pair(operator)
    shapes = operator(x).shape, operator.adjoint(y).shape, operator.pseudo_inverse(y).shape
    operator.to("meta")
    found = operator(x.to("meta")), operator.adjoint(y.to("meta")), operator.pseudo_inverse(y.to("meta"))
    assert all(tensor.is_meta for tensor in found)
    assert tuple(tensor.shape for tensor in found) == shapes
    assert operator.sampled(y.to("meta")).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@table(OPERATORS)
def test_gpu_equals_cpu(make):
    operator = make(12)
    x, y = random_pair(operator)
    expected = operator(x), operator.adjoint(y), operator.pseudo_inverse(y)
    operator.to("cuda")
    found = operator(x.cuda()), operator.adjoint(y.cuda()), operator.pseudo_inverse(y.cuda())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slices", [slice(1, 3), [2, 0], torch.tensor([1]), slice(None)], ids=str)
@table({name: make for name, make in OPERATORS.items() if "cone" not in name})  # tests/test_coupled.py
def test_select(make, slices):
    """The operator of some slices does with these what that of all slices does."""
    operator = make(12)
    x, y = random_pair(operator)
    before = operator(x)
    part = operator.select(slices)
    torch.testing.assert_close(part(x[slices]), before[slices])
    torch.testing.assert_close(part.adjoint(y[slices]), operator.adjoint(y)[slices])
    torch.testing.assert_close(part.pseudo_inverse(y[slices]), operator.pseudo_inverse(y)[slices])
    torch.testing.assert_close(part.sampled(y[slices]), operator.sampled(y)[slices])
    assert part.scale == operator.scale
    if part is not operator:
        part.to(torch.float64)  # and the operator of all slices stays what it was
        assert torch.equal(operator(x), before)


@pytest.mark.parametrize("name", PER_SLICE)
def test_each_slice_has_its_own(name):
    operator = OPERATORS[name](12)
    height, width = height_width(operator.image_size)
    x = random(1, operator.channels, height, width).repeat(SLICES, 1, 1, 1)
    for a, b in itertools.combinations(operator(x), 2):
        assert (a - b).norm() > 0.1 * a.norm()
    for a, b in itertools.combinations(range(SLICES), 2):
        one, other = operator.select([a])(x[:1]), operator.select([b])(x[:1])
        assert (one - other).norm() > 0.1 * one.norm()
    with pytest.raises(ValueError, match=rf"expected a tensor of shape \(3, {operator.channels}, {height}, {width}\)"):
        operator(x[:2])


@table(OPERATORS)
def test_noise_at_measured_values_only(make):
    operator = make(32)
    x = torch.zeros(SLICES, operator.channels, *height_width(operator.image_size))
    noise = simulate(x, operator, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(operator.sampled(noise), noise)
    assert torch.equal(simulate(x, operator, 0.0), operator(x))
    measured = (noise != 0).flatten(1).sum(1)
    assert torch.equal(operator.values(noise), measured.float())
    values = measured.sum().item()
    measurement = Measurement(noise, operator, 0.3, "some")
    assert len(measurement) == SLICES
    torch.testing.assert_close(measurement.noise_energy(2), 0.36 * measured.float())
    variance = noise.abs().square().sum() / values
    assert variance.item() == pytest.approx(0.09, rel=5 / values**0.5)
    if noise.is_complex():
        ratio = noise.real.square().sum() / noise.imag.square().sum()
        assert ratio.item() == pytest.approx(1, rel=10 / values**0.5)
        assert len(noise[0][noise[0] != 0].abs().unique()) > 0.95 * measured[0]  # other noise in each coil


@table(MRI)
def test_without_state(make):
    operator = make(12)
    assert operator.state_dict() == {}
    assert not list(operator.parameters())
    assert re.search(r"image_size=(12|\(12, 9\)), channels=", repr(operator))


@table(MRI)
def test_wrong_shape(make):
    operator = make(12)
    x, y = random_pair(operator)
    height, width = x.shape[-2:]
    for bad in x[0], x[..., :-1], x[:, :, 1:], torch.cat([x, x], 1):
        with pytest.raises(ValueError, match=rf"{operator.channels}, {height}, {width}\), got \("):
            operator(bad)
    for bad in y[0], y[..., :-1], torch.cat([y, y], 1):
        for apply in operator.adjoint, operator.pseudo_inverse:
            with pytest.raises(ValueError, match=rf"{', '.join(map(str, y.shape[1:]))}\), got \("):
                apply(bad)


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
    operator = SingleCoilMRI((height, width), mask, complex_image).double()
    found = operator.scale * operator(x)
    assert operator.scale == 1
    torch.testing.assert_close(found[:, 0].numpy(), mask.numpy() * centred_fft(image.numpy()), rtol=0, atol=1e-5)
    assert (found[~mask[:, None]] == 0).all()


@settings(max_examples=20)
@given(size=st.tuples(st.integers(4, 20), st.integers(4, 20)), coils=st.integers(1, 5), seed=st.integers(0, 100))
def test_sense_is_that_of_each_coil(size, coils, seed):
    maps = smooth_maps(size, coils, SLICES, seed)
    mask = RandomPoints(1.5, centre=0, seed=seed)(size)
    operator = SENSE(size, mask, maps).double()
    x = random(SLICES, 2, *size, dtype=torch.float64, seed=seed)
    found = (operator.scale * operator(x)).numpy()
    for i, c in itertools.product(range(SLICES), range(coils)):
        expected = mask.numpy() * centred_fft((maps[i, c] * torch.complex(x[i, 0], x[i, 1])).numpy())
        np.testing.assert_allclose(found[i, c], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 21), (15, 24)])
def test_agrees_with_sigpy(size):
    sigpy = pytest.importorskip("sigpy")
    from sigpy.mri.linop import Sense

    maps, mask = smooth_maps(size, 5), RandomPoints(3)(size)
    operator = SENSE(size, mask, maps)
    reference = Sense(maps[0].numpy(), weights=mask.numpy().astype(np.float32))
    x, y = random(1, 2, *size), random(1, 5, *size, dtype=torch.complex64)
    image = torch.complex(x[0, 0], x[0, 1]).numpy()
    np.testing.assert_allclose(operator.scale * operator(x)[0].numpy(), reference(image), atol=1e-4)
    back = operator.scale * operator.adjoint(y)[0].numpy()
    np.testing.assert_allclose(back[0] + 1j * back[1], reference.H(y[0].numpy()), atol=1e-4)

    single = SingleCoilMRI(size, torch.ones(size), complex_image=True)
    np.testing.assert_allclose(single(x)[0, 0].numpy(), sigpy.fft(image), atol=1e-4)


def test_a_real_image_needs_half_of_its_spectrum():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:9] = True  # the frequencies -8 .. 0
    x = random(2, 1, 16, 16)
    operator = SingleCoilMRI(16, mask)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), x, rtol=1e-4, atol=1e-5)
    as_complex = SingleCoilMRI(16, mask, complex_image=True)
    zero_filled = as_complex.pseudo_inverse(as_complex(torch.cat([x, 0 * x], 1)))[:, :1]
    assert (zero_filled - x).norm() > 0.3 * x.norm()


def test_scale_is_that_of_the_maps():
    """Maps twice as sensitive: the same operator of unit norm, twice the scale."""
    one, two = (SENSE(12, RandomLines(2, centre=0.2), factor * smooth_maps(12)) for factor in (1, 2))
    assert two.scale == pytest.approx(2 * one.scale, rel=1e-4)
    x = random(1, 2, 12, 12)
    torch.testing.assert_close(one(x), two(x), rtol=1e-3, atol=1e-4)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SingleCoilMRI(16, torch.ones(12, 16)), r"mask of shape \(12, 16\); images of 16 x 16 need \(16, 16\)"),
        (lambda: SingleCoilMRI(16, torch.ones(8, 8)), r"mask of shape \(8, 8\)"),
        (lambda: SingleCoilMRI(16, torch.ones(16)), r"mask of shape \(16,\)"),
        (lambda: SingleCoilMRI(16, torch.ones(1, 1, 16, 16)), r"mask of shape \(1, 1, 16, 16\)"),
        (lambda: SingleCoilMRI(16, torch.zeros(16, 16)), "mask is all zero"),
        (lambda: SingleCoilMRI(16, torch.stack([torch.ones(16, 16), torch.zeros(16, 16)])), "mask is all zero"),
        (lambda: SingleCoilMRI(0, RandomPoints(2)), "image_size is 0"),
        (lambda: SingleCoilMRI((16, 0), RandomPoints(2)), r"image_size is \(16, 0\)"),
        (lambda: SingleCoilMRI((16, 12), torch.ones(12, 16)), r"shape \(12, 16\); images of 16 x 12 need \(16, 12\)"),
        (lambda: SENSE((16, 12), RandomLines(2), smooth_maps((12, 16))), r"\(1, 6, 12, 16\); images of 16 x 12"),
        (lambda: SENSE(16, torch.ones(8, 8), smooth_maps(16)), r"mask of shape \(8, 8\)"),
        (lambda: SENSE(16, RandomLines(2), smooth_maps(12)), r"coil maps of shape \(1, 6, 12, 12\); images of 16 x 16"),
        (lambda: SENSE(16, RandomLines(2), smooth_maps(16)[0]), r"coil maps of shape \(6, 16, 16\)"),
        (lambda: SENSE(16, RandomLines(2), 0 * smooth_maps(16)), "coil maps of a slice are all zero"),
        (
            lambda: SENSE(16, RandomLines(2), torch.stack([torch.ones(2, 16, 16), torch.zeros(2, 16, 16)])),
            "coil maps of a slice are all zero",
        ),
        (lambda: SENSE(16, RandomLines(2), smooth_maps(16) * float("nan")), "not finite"),
        (lambda: SENSE(16, RandomLines(2), smooth_maps(16), iterations=0), "iterations of SENSE is 0"),
        (
            lambda: SENSE(16, torch.ones(2, 16, 16), smooth_maps(16, slices=3)),
            "masks of 2 slices and coil maps of 3",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def parse_operator(text):
    """The operator of a task's settings, as the command line makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--operator", type=Callable[[int], LinearOperator])
    with warnings.catch_warnings(action="ignore"):  # the method is about to be renamed
        return parser.instantiate_classes(parser.parse_args(["--operator", text])).operator


def test_settings_name_the_mask():
    mask = '{"class_path": "ddip_pl.physics.RandomLines", "init_args": {"acceleration": 4, "centre": 0.1}}'
    operator = parse_operator(
        '{"class_path": "ddip_pl.physics.SingleCoilMRI", "init_args": {"complex_image": true, "mask": ' + mask + "}}"
    )(40)
    assert (operator.image_size, operator.channels) == (40, 2)
    assert torch.equal(operator.mask[0, 0], RandomLines(4, centre=0.1)(40))


def test_what_is_wrong_with_a_mask_reaches_the_user():
    """The parser tries the types of an argument in turn and passes on the error of the first."""
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
    operator = parse_operator(json.dumps(data["operator"]))(64)
    assert operator.channels == channels
    assert operator.mask.numel() / operator.mask.sum().item() == pytest.approx(acceleration, rel=0.1)
    assert operator.mask[0, 0, 30:34, 30:34].all()
    assert data["sigma_y"] == 0.01


def test_limited_angle_task():
    """60 angles over a quarter turn; half of all directions are missing."""
    data = yaml.safe_load(CONFIGS.joinpath("task", "lact.yaml").read_text())["data"]
    operator = parse_operator(json.dumps(data["operator"]))(32)
    np.testing.assert_allclose(np.degrees(operator.angles), np.arange(60) * 1.5)


# --- simulation ---------------------------------------------------------------------------------------------


def simulated(path, operator, seed=0, **kwargs):
    torch.manual_seed(seed)
    return VolumeDataModule(str(path), lambda size: operator, 0.01, **kwargs).simulate(operator)


def test_a_complex_volume_has_a_smooth_random_phase(phantom_volume):
    size = 32
    complex_operator = SENSE(size, RandomLines(2), smooth_maps(size))
    measurement = simulated(phantom_volume, complex_operator)
    magnitude = simulated(phantom_volume, SingleCoilMRI(size, RandomLines(2))).reference
    reference = measurement.reference
    assert reference.shape == (6, 2, size, size)
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
