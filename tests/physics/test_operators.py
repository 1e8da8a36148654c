"""All operators, from one table: adjoint, norm, pseudo-inverse, gradients, selection, arrays, devices, `check`."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random, smooth_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import (
    BUILT_IN,
    CARTESIAN,
    COUPLED,
    DIRECT,
    FORWARD,
    MRI,
    OPERATORS,
    OWN,
    PER_SLICE,
    SIZES,
    SLICES,
    UNCOUPLED,
    Blur,
    Brightness,
    dense,
    half_masks,
    inner,
    random_pair,
    table,
    volume,
)
from super_resolution import SuperResolution
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, ConeBeamCT, LinearOperator, Measurement, NonCartesianMRI, RandomLines, simulate
from ddip_pl.physics.operator import spectral_norm

# --- the adjoint ----------------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
@SIZES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@table(OPERATORS)
def test_adjoint(make, dtype, tolerance, size, seed):
    operator = make(volume(size)).to(dtype)
    x, y = random_pair(operator, dtype, seed)
    ax, aty = operator(x), operator.adjoint(y)
    assert aty.dtype == x.dtype
    assert aty.shape == x.shape
    assert abs(inner(ax, y) - inner(x, aty)) <= tolerance * ax.norm() * y.norm()


@table(OPERATORS)
def test_adjoint_by_automatic_differentiation_is_the_written_one(make):
    operator = make(volume(12)).double()
    _, y = random_pair(operator, torch.float64)
    if operator.zeros().is_complex():
        pytest.skip("images are real")
    # An operator without buffers has single precision.
    tolerance = {} if operator.like.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(LinearOperator.adjoint(operator, y), operator.adjoint(y), **tolerance)


@table(FORWARD)
def test_where_gradients_are_off(make):
    operator = make(volume(12))
    x, _ = random_pair(operator)
    expected = operator(x), operator.normal(x)
    for context in torch.no_grad(), torch.inference_mode():
        with context:
            y = operator(x)
            torch.testing.assert_close((y, operator.adjoint(y)), expected)
            assert not operator.adjoint(y).requires_grad


@table(OPERATORS)
def test_spaces(make):
    operator = make(volume(12))
    x, y = random_pair(operator)
    assert operator.shape[:2] == (SLICES, 12)
    assert (operator.domain, operator.range) == (x.shape, y.shape)
    assert (operator.T.domain, operator.T.range) == (y.shape, x.shape)
    assert operator.T.T is operator or operator.T.T.domain == operator.domain
    torch.testing.assert_close(operator.T(y), operator.adjoint(y))
    torch.testing.assert_close(operator.T.adjoint(x), operator(x))
    assert torch.equal(operator.zeros(), torch.zeros(operator.domain, dtype=x.dtype))


# --- the norm -------------------------------------------------------------------------------------------------


@SIZES
@table(OPERATORS)
def test_norm(make, size):
    operator = make(volume(size)).double()
    norm = torch.linalg.matrix_norm(dense(operator), 2).max().item()
    assert operator.norm == pytest.approx(norm, rel=2e-3)
    assert operator.normalised().norm == pytest.approx(1, abs=1e-2)
    assert operator.normalised().scale == pytest.approx(operator.scale * operator.norm, rel=1e-2)


@table(OPERATORS)
def test_gain(make):
    operator = make(volume(12)).double()
    assert operator.gain == pytest.approx(float(dense(operator).square().sum(1).mean().sqrt()), rel=0.2)


@SIZES
@table(BUILT_IN | {"super-resolution": OWN["super-resolution"]})
def test_unit_norm(make, size):
    """`test_norm` checks that it is true."""
    operator = make(volume(size))
    assert operator.norm == 1
    assert operator.normalised() is operator


@table({name: OWN[name] for name in ("blur", "brightness")})
def test_normalised(make):
    operator = make(volume(12))
    unit = operator.normalised()
    norm = spectral_norm(unit.normal, unit.domain, torch.float32)
    assert norm == pytest.approx(1, abs=1e-3)
    x, y = random_pair(operator)
    torch.testing.assert_close(unit.scale * unit(x), operator(x))
    torch.testing.assert_close(unit.pseudo_inverse(y / unit.scale), operator.pseudo_inverse(y))
    assert unit.normalised() is unit
    assert unit.unit((2.0, 3.0)) == unit.scale


def test_an_operator_that_measures_nothing_is_refused():
    operator = Brightness(volume(4))
    operator.factors.zero_()
    with pytest.raises(InputError, match="Brightness measures nothing: its norm is 0"):
        operator.normalised()


# --- linear, differentiable, precise --------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_superposition(name):
    operator = OPERATORS[name](volume(12)).double()
    (x, y), (u, v) = random_pair(operator, torch.float64), random_pair(operator, torch.float64, seed=5)
    torch.testing.assert_close(operator(2 * x - u), 2 * operator(x) - operator(u))
    for apply in (operator.adjoint, operator.pseudo_inverse) if name in DIRECT else (operator.adjoint,):
        torch.testing.assert_close(apply(2 * y - v), 2 * apply(y) - apply(v))


@table({name: make for name, make in OPERATORS.items() if "no pairs" not in name})
def test_gradients(make):
    operator = make(volume(6)).double()
    operator.iterations = min(operator.iterations, 5)  # of conjugate gradients, before only rounding is left
    x, y = (tensor.requires_grad_() for tensor in random_pair(operator, torch.float64))
    assert torch.autograd.gradcheck(operator, x, fast_mode=True)
    assert torch.autograd.gradcheck(operator.adjoint, y, fast_mode=True)
    assert torch.autograd.gradcheck(operator.pseudo_inverse, y, fast_mode=True)
    (gradient,) = torch.autograd.grad(operator(x).abs().square().sum() / 2, x)
    exact = not isinstance(operator, NonCartesianMRI)  # its normal operator is not the product of the other two
    torch.testing.assert_close(gradient, operator.normal(x), **({} if exact else {"rtol": 1e-4, "atol": 1e-4}))


@table(OPERATORS)
def test_pseudo_inverse_explains_the_measurement(make):
    operator = make(volume(12)).double()
    x, _ = random_pair(operator, torch.float64)
    y = operator(x)
    assert (operator(operator.pseudo_inverse(y)) - y).norm() < 0.7 * y.norm()


@table(BUILT_IN)
def test_precision(make):
    operator = make(volume(12))
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


@table(OPERATORS)
def test_numpy_in_numpy_out(make):
    """The result has the operator's precision, whatever the array's."""
    operator = make(volume(12))
    x, y = random_pair(operator)
    for apply, argument in (
        (operator, x), (operator.adjoint, y), (operator.pseudo_inverse, y), (operator.T, y), (operator.T.T, x),
    ):  # fmt: skip
        expected = apply(argument)
        assert isinstance(expected, Tensor)
        for array in argument.numpy(), argument.numpy().astype(np.result_type(argument.numpy(), np.float64)):
            found = apply(array[:, ::-1][:, ::-1])  # not contiguous in between
            assert isinstance(found, np.ndarray)
            assert found.dtype == expected.numpy().dtype
            np.testing.assert_array_equal(found, expected.numpy())


# --- devices --------------------------------------------------------------------------------------------------


@table(CARTESIAN)  # torchkbnufft needs actual values
def test_meta_device(make):
    operator = make(volume(12))
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
    operator = make(volume(12))
    x, y = random_pair(operator)
    expected = operator(x), operator.adjoint(y), operator.pseudo_inverse(y)
    operator.to("cuda")
    found = operator(x.cuda()), operator.adjoint(y.cuda()), operator.pseudo_inverse(y.cuda())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


@table(MRI)
def test_without_state(make):
    operator = make(volume(12))
    assert operator.state_dict() == {}
    assert not list(operator.parameters())
    assert re.search(r"shape=\(3, 12, (12|9)\), channels=", repr(operator))


# --- some of the slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [slice(1, 3), [2, 0], torch.tensor([1]), slice(None)], ids=str)
@table(UNCOUPLED)
def test_select(make, slices):
    """The operator of some slices does the same with them as the operator of all slices."""
    operator = make(volume(12)).double()
    operator.iterations = min(operator.iterations, 5)  # of conjugate gradients, before only rounding is left
    x, y = random_pair(operator, torch.float64)
    before = operator(x)
    part = operator.select(slices)
    count = len(x[slices])
    assert part.shape == (count, *operator.shape[1:])
    assert (part.domain, part.range) == ((count, *operator.domain[1:]), (count, *operator.range[1:]))
    torch.testing.assert_close(part(x[slices]), before[slices])
    torch.testing.assert_close(part.adjoint(y[slices]), operator.adjoint(y)[slices])
    torch.testing.assert_close(part.pseudo_inverse(y[slices]), operator.pseudo_inverse(y)[slices])
    torch.testing.assert_close(part.sampled(y[slices]), operator.sampled(y)[slices])
    assert part.scale == operator.scale
    part.to(torch.float32)  # the operator of all slices does not change
    assert torch.equal(operator(x), before)


@pytest.mark.parametrize("chosen", [[2], [2, 1], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("name", COUPLED)
def test_select_of_coupled_slices(name, chosen):
    """It does the same as the operator of all slices with the others set to 0."""
    operator = OPERATORS[name](volume(12))
    x, part = random(*operator.domain), operator.select(chosen)
    alone = torch.zeros_like(x)
    alone[chosen] = x[chosen]
    y = operator(alone)
    torch.testing.assert_close(part(x[chosen]), y)
    torch.testing.assert_close(part.adjoint(y), operator.adjoint(y)[chosen])
    assert (part.coupled, part.scale, operator.coupled) == (len(chosen), operator.scale, SLICES)
    part.to(torch.float64)  # the operator of all slices does not change
    assert torch.equal(operator(alone), y)


@pytest.mark.parametrize("name", PER_SLICE)
def test_each_slice_has_its_own(name):
    operator = OPERATORS[name](volume(12))
    x = random(1, *operator.domain[1:]).repeat(SLICES, *[1] * (len(operator.domain) - 1))
    for a, b in itertools.combinations(operator(x), 2):
        assert (a - b).norm() > 0.1 * a.norm()
    for a, b in itertools.combinations(range(SLICES), 2):
        one, other = operator.select([a])(x[:1]), operator.select([b])(x[:1])
        assert (one - other).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("name", [name for name in PER_SLICE if name in MRI])
def test_where_each_slice_has_its_own_their_number_is_checked(name):
    operator = OPERATORS[name](volume(12))
    shape = ", ".join(map(str, operator.domain[1:]))
    with pytest.raises(InputError, match=rf"expected a tensor of shape \(3, {shape}\)"):
        operator(operator.zeros()[:2])


@table({name: make for name, make in UNCOUPLED.items() if name not in PER_SLICE and "SENSE" not in name})
def test_slices_are_a_batch_axis(make):
    operator = make(volume(12))
    x, y = random_pair(operator)
    torch.testing.assert_close(operator(torch.cat([x, x])), torch.cat([operator(x)] * 2))
    torch.testing.assert_close(operator.adjoint(torch.cat([y, y])), torch.cat([operator.adjoint(y)] * 2))


@table(OPERATORS)
def test_batches(make):
    operator = make(volume(12))
    batches = [batch.tolist() for batch in operator.batches(2)]
    assert batches == ([[0, 1], [2]] if operator.coupled == 1 else [[0, 1, 2]])
    groups = torch.arange(SLICES // operator.coupled) + 1.0
    expected = groups.tolist() if operator.coupled == 1 else [1.0] * SLICES
    assert operator.per_image(groups).shape == (SLICES, 1, 1, 1)
    assert operator.per_image(groups).flatten().tolist() == expected


@table(OPERATORS)
def test_solve(make):
    """`(A^T A + damping I) x = b`, each system on its own."""
    operator = make(volume(12)).double()
    expected = random_pair(operator, torch.float64)[0]
    b = operator.normal(expected) + 10 * expected
    torch.testing.assert_close(operator.solve(b, 30, damping=10.0), expected, rtol=1e-3, atol=1e-3)


# --- measured values ------------------------------------------------------------------------------------------


@table(FORWARD)
def test_noise_at_measured_values_only(make):
    operator = make(volume(32))
    x = operator.zeros()
    noise = simulate(x, operator, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(operator.sampled(noise), noise)
    assert torch.equal(simulate(x, operator, 0.0), operator(x))
    measured = (noise != 0).flatten(1).sum(1)
    assert torch.equal(operator.values(noise), measured.float())
    values = measured.sum().item()
    measurement = Measurement(noise, operator, 0.3)
    assert len(measurement) == SLICES
    torch.testing.assert_close(measurement.noise_energy(2), 0.36 * measured.float())
    variance = noise.abs().square().sum() / values
    assert variance.item() == pytest.approx(0.09, rel=5 / values**0.5)
    if noise.is_complex():
        ratio = noise.real.square().sum() / noise.imag.square().sum()
        assert ratio.item() == pytest.approx(1, rel=10 / values**0.5)
        assert len(noise[0][noise[0] != 0].abs().unique()) > 0.95 * measured[0]  # different noise in each coil


@table(FORWARD)
def test_what_is_not_visible_does_not_matter(make):
    operator = make(volume(12))
    x, _ = random_pair(operator)
    torch.testing.assert_close(operator(operator.visible(x)), operator(x))
    assert torch.equal(operator.visible(operator.visible(x)), operator.visible(x))


# --- shapes ---------------------------------------------------------------------------------------------------


@table(MRI)
def test_wrong_shape(make):
    operator = make(volume(12))
    x, y = random_pair(operator)
    height, width = x.shape[-2:]
    for bad in x[0], x[..., :-1], x[:, :, 1:], torch.cat([x, x], 1):
        with pytest.raises(InputError, match=rf"{operator.channels}, {height}, {width}\), got \("):
            operator(bad)
    for bad in y[0], y[..., :-1], torch.cat([y, y], 1):
        for apply in operator.adjoint, operator.pseudo_inverse:
            with pytest.raises(InputError, match=rf"{', '.join(map(str, y.shape[1:]))}\), got \("):
                apply(bad)


@pytest.mark.parametrize(
    "shape", [12, (12, 12), (0, 12, 12), (1, 12, -3), (1, 12.0, 12), (1, 1, 12, 12), "abc"], ids=str
)
def test_what_is_no_shape_of_a_volume(shape):
    with pytest.raises(InputError, match=r"give \(a whole number from 1 to 1000000, ") as caught:
        Blur(shape)
    assert str(shape) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- operators of operators -----------------------------------------------------------------------------------


def test_composition():
    shape = volume(12)
    blur, brightness = Blur(shape), Brightness(shape)
    both = blur @ brightness
    x, y = random_pair(both)
    torch.testing.assert_close(both(x), blur(brightness(x)))
    torch.testing.assert_close(both.T(y), brightness.T(blur.T(y)))
    with pytest.raises(InputError, match=r"Brightness takes \(3, 1, 12, 12\), Blur returns \(3, 1, 10, 11\)"):
        brightness @ blur


def test_stack():
    shape = volume(12)
    blur, brightness = Blur(shape), Brightness(shape)
    both = blur.stack(brightness)
    x, y = random_pair(both)
    assert both.range == (SLICES, 110 + 144)
    torch.testing.assert_close(both(x), torch.cat([blur(x).flatten(1), brightness(x).flatten(1)], 1))
    first, second = both.split(y)
    torch.testing.assert_close(both.T(y), blur.T(first) + brightness.T(second))
    with pytest.raises(InputError, match=r"volumes of Blur are \(3, 1, 12, 12\), of Brightness \(3, 1, 12, 13\)"):
        blur.stack(Brightness((3, 12, 13)))


def test_a_stack_knows_what_both_measure():
    shape = volume(12)
    maps = smooth_maps(12, 12)
    maps[..., :4, :] = 0
    masked = SENSE(shape, half_masks(shape), maps)
    other = SENSE(shape, RandomLines(2), maps.flip(-2))
    both = masked.stack(other)
    x = random(*both.domain)
    y = both(x)
    torch.testing.assert_close(both.values(y), masked.values(masked(x)) + other.values(other(x)))
    noise = torch.ones_like(y)
    first, second = both.split(both.sampled(noise))
    assert torch.equal(first, masked.sampled(torch.ones_like(first)))
    assert torch.equal(second, other.sampled(torch.ones_like(second)))
    assert torch.equal(both.visible(x), x)
    assert not torch.equal(masked.visible(x), x)


def test_the_noise_of_a_scaled_operator():
    class Loud(SuperResolution):
        def forward(self, x: Tensor) -> Tensor:
            return 7 * super().forward(x)

        def adjoint(self, y: Tensor) -> Tensor:
            return 7 * super().adjoint(y)

        def noise_level(self, y: Tensor) -> float:
            return float(y.std())

    loud = Loud(volume(12))
    loud.norm = 7.0
    unit, y = loud.normalised(), random(3, 1, 3, 3)
    assert unit.noise_level(y) == pytest.approx(float(y.std()))
    assert unit.scale == 7 / 4


# --- files ----------------------------------------------------------------------------------------------------


@table(BUILT_IN)
def test_description(make):
    """The same operator is made from its description."""
    operator = make(volume(12))
    again = type(operator).from_description(operator.describe((1.5, 1.5)), file_shape(operator))
    x, y = random_pair(operator)
    assert type(again) is type(operator)
    assert (again.shape, again.channels) == (operator.shape, operator.channels)
    torch.testing.assert_close(again(x), operator(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.adjoint(y), operator.adjoint(y), rtol=1e-4, atol=1e-5)
    assert again.scale == pytest.approx(operator.scale, rel=1e-4)
    assert again.unit((1.5, 1.5)) == pytest.approx(operator.unit((1.5, 1.5)), rel=1e-4)
    assert operator.kind
    assert len(operator.axes) == len(file_shape(operator))


def file_shape(operator: LinearOperator) -> tuple[int, ...]:
    """The shape of the data in a file: without axes of length 1 that the file layout does not have."""
    shape = operator.range
    return shape if len(shape) == len(operator.axes) else tuple(n for i, n in enumerate(shape) if i != 1 or n != 1)


def test_no_layout():
    with pytest.raises(InputError, match="no file layout for measurements by Blur"):
        Blur(volume(12)).describe((1.0, 1.0))
    with pytest.raises(InputError, match="no file layout for measurements by Blur"):
        Blur.from_description({}, (3, 12, 12))


# --- check ----------------------------------------------------------------------------------------------------


@table(OPERATORS)
def test_check(make):
    operator = make(volume(12))
    state = torch.get_rng_state()
    check = operator.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert max(check.linearity, check.adjointness) < 1e-5
    assert check.gradient < 3e-5
    assert check.norm == operator.norm


class Shifted(Blur):
    """The adjoint is off by one pixel."""

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y).roll(1, -1)


class Louder(Blur):
    """The adjoint is slightly too large."""

    def adjoint(self, y: Tensor) -> Tensor:
        return 1.001 * super().adjoint(y)


class Square(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-2 * x.square()


class Offset(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Clipped(Blur):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(min=0)


class Rotation(torch.autograd.Function):
    """`forward` is a rotation, whose transpose rotates back; `backward` rotates further."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.rot90(1, (-2, -1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.rot90(1, (-2, -1))


class WrongGradient(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return Rotation.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.rot90(-1, (-2, -1))


class NoGradient(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.detach()

    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * y


class WrongNormal(Blur):
    def normal(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("size", [12, 128])  # random volumes are nearly orthogonal at the larger size
@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (Shifted, "Shifted has a wrong adjoint"),
        (Louder, "Louder has a wrong adjoint"),
        (Square, "Square is not linear"),
        (Offset, "Offset is not linear"),
        (Clipped, "Clipped is not linear"),
        (WrongGradient, "WrongGradient has a wrong gradient"),
        (NoGradient, "NoGradient is not differentiable"),
        (WrongNormal, "WrongNormal has a wrong gradient"),
    ],
)
def test_check_finds_what_is_wrong(operator, message, size):
    with pytest.raises(InputError, match=message) as caught:
        operator(volume(size)).check()
    assert "\n" not in str(caught.value)


# --- the norm by power iteration ------------------------------------------------------------------------------


@settings(max_examples=10)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 100))
def test_spectral_norm(rows, columns, seed):
    matrix = random(rows, columns, dtype=torch.float64, seed=seed)
    found = spectral_norm(lambda x: matrix.T @ (matrix @ x), (columns,), iterations=5000, tolerance=1e-12)
    assert found == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-3)


class Running(LinearOperator):
    """Sums over the slices up to each one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


class Total(LinearOperator):
    """The sum over all slices."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


@pytest.mark.parametrize("kind", [Running, Total])
def test_check_finds_slices_that_are_measured_together(kind):
    with pytest.raises(InputError, match="set coupled to"):
        kind((3, 8, 8)).check()


def test_slices_that_are_said_to_be_measured_together():
    operator = Total((3, 8, 8))
    operator.coupled = 3
    assert operator.check().norm == pytest.approx(3**0.5, rel=1e-3)


class Filter(LinearOperator):
    """A convolution whose kernel is a parameter."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__(shape)
        self.layer = torch.nn.Conv2d(1, 1, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Halves(LinearOperator):
    """An operator without any tensor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]


@pytest.mark.parametrize("kind", [Filter, Halves])
def test_precision_without_buffers(kind):
    operator = kind((2, 8, 8)).double()
    y = operator(operator.zeros() + 1)
    for like in (operator, operator.normalised(), operator.stack(operator), operator.T):
        assert like.zeros().dtype == torch.float64
    assert operator.pseudo_inverse(y).dtype == torch.float64
    assert operator.check().adjointness < 1e-12
    assert operator.state_dict().keys() <= {"layer.weight"}


def test_coupled_slices_and_the_measurement_as_an_image():
    cone = ConeBeamCT((3, 8, 8), angles=3)
    gram = cone @ cone.T
    y = gram(torch.ones(gram.domain))
    assert gram.pseudo_inverse(y).shape == y.shape


class Noisy(LinearOperator):
    """Tells the first value for the level of the noise."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def noise_level(self, y: Tensor) -> float:
        return float(y.flatten()[0])


def test_noise_of_two_measurements_together() -> None:
    """The root mean square over all values."""
    shape = (2, 4, 4)
    both = Noisy(shape).stack(Noisy(shape))
    y = torch.cat([torch.full((2, 16), value) for value in (3.0, 4.0)], dim=1)
    assert both.noise_level(y) == pytest.approx(12.5**0.5)
    assert (Noisy(shape) @ Noisy(shape)).noise_level(torch.full((2, 1, 4, 4), 2.0)) == 2.0


def test_a_number_chooses_no_slices() -> None:
    with pytest.raises(InputError, match="slices chosen by 0; give a slice, a list"):
        Noisy((2, 4, 4)).select(0)  # type: ignore[arg-type]
