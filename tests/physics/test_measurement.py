"""Measurements: figures of every system against a direct computation, some of the slices, other devices."""

import dataclasses

import pytest
import torch
from helpers import smooth_maps
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    ConeBeamCT,
    LinearOperator,
    Measurement,
    NonCartesianMRI,
    ParallelBeamCT,
    Radial,
    RandomLines,
    SingleCoilMRI,
    simulate,
)

SHAPE = SLICES, SIZE, _ = 4, 16, 16

OPERATORS = {
    "CT": lambda: ParallelBeamCT(SHAPE, 9),
    "cone beam": lambda: ConeBeamCT(SHAPE, 9),
    "one coil": lambda: SingleCoilMRI(SHAPE, torch.stack([RandomLines(2, seed=i)(SIZE) for i in range(SLICES)])),
    "SENSE": lambda: SENSE(SHAPE, RandomLines(2), smooth_maps(SIZE, SIZE, slices=SLICES)),
    "radial": lambda: NonCartesianMRI(SHAPE, Radial(9), smooth_maps(SIZE, SIZE)),
}
table = pytest.mark.parametrize("name", OPERATORS)


def images(operator: LinearOperator, seed: int = 0) -> Tensor:
    return torch.rand(operator.domain, generator=torch.Generator().manual_seed(seed))


def measure(operator: LinearOperator, sigma_y: float = 1e-2) -> Measurement:
    x = images(operator)
    return Measurement(simulate(x, operator, sigma_y, torch.Generator().manual_seed(1)), operator, sigma_y, x)


@pytest.fixture(scope="module")
def cone() -> ConeBeamCT:
    return ConeBeamCT(SHAPE, 9)


# --- figures --------------------------------------------------------------------------------------------------


@table
def test_misfit_of_every_system(name):
    measurement = measure(OPERATORS[name]())
    x = images(measurement.operator, seed=7)
    difference = (measurement.operator(x) - measurement.y).to(torch.complex128)
    torch.testing.assert_close(measurement.residual(x).to(torch.complex128), difference)
    misfit = measurement.misfit(x)
    assert misfit.shape == (SLICES // measurement.operator.coupled,)
    for found, one in zip(misfit, difference, strict=True):
        assert found.item() == pytest.approx(sum(abs(value) ** 2 for value in one.flatten().tolist()), rel=1e-5)


@table
def test_figures_of_the_volume(name):
    measurement = measure(OPERATORS[name]())
    assert len(measurement) == SLICES
    x = images(measurement.operator, seed=7)
    residual = measurement.misfit(x).sum().sqrt().item()
    values = measurement.operator.values(measurement.y)
    assert measurement.relative_residual(x) == pytest.approx(residual / measurement.y.norm().item(), rel=1e-5)
    assert measurement.discrepancy(x) == pytest.approx(residual / (1e-2 * values.sum().item() ** 0.5), rel=1e-5)
    torch.testing.assert_close(measurement.noise_energy(2), 4e-4 * values)
    reference = measurement.reference
    assert reference is not None
    assert measurement.discrepancy(reference) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(measurement.misfit(reference), measurement.noise_energy(), rtol=0.3, atol=0)


def test_figures_need_no_gradient():
    measurement = measure(ParallelBeamCT(SHAPE, 9))
    x = images(measurement.operator).requires_grad_()
    assert isinstance(measurement.discrepancy(x), float)
    (gradient,) = torch.autograd.grad(measurement.misfit(x).sum(), x)
    torch.testing.assert_close(gradient, 2 * measurement.operator.adjoint(measurement.residual(x)))


def test_without_noise():
    measurement = measure(ParallelBeamCT(SHAPE, 9), sigma_y=0.0)
    assert measurement.reference is not None
    assert measurement.relative_residual(measurement.reference) < 1e-6
    assert measurement.discrepancy(measurement.reference) == float("inf")


def test_simulation():
    operator = ParallelBeamCT(SHAPE, 9)
    x = images(operator)
    state = torch.get_rng_state()
    first, second = (simulate(x, operator, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first - operator(x)).std().item() == pytest.approx(0.1, rel=0.1)


# --- some of the slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [slice(1, 3), [3, 1], torch.tensor([2])], ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "cone beam"])
def test_measurement_of_some_slices(name, chosen):
    measurement = measure(OPERATORS[name]())
    x = images(measurement.operator, seed=7)
    part = measurement[chosen]
    assert len(part) == len(x[chosen])
    assert torch.equal(part.y, measurement.y[chosen])
    assert part.reference is not None
    assert torch.equal(part.reference, images(measurement.operator)[chosen])
    torch.testing.assert_close(part.misfit(x[chosen]), measurement.misfit(x)[chosen])
    torch.testing.assert_close(part.noise_energy(), measurement.noise_energy()[chosen])
    given = measurement.given(lambda: pytest.fail("slices that do not depend on each other need no estimate"))
    assert given is measurement


@pytest.mark.parametrize("chosen", [[2], [3, 1], [0, 1, 2, 3]], ids=str)
def test_measurement_of_some_slices_holds_the_others_at_their_estimate(cone, chosen):
    measurement, estimate = measure(cone), images(cone, seed=7)
    part = measurement.given(lambda: estimate)[chosen]
    assert len(part) == len(chosen)
    assert torch.equal(part.noise_energy(), measurement.noise_energy())
    assert part.reference is not None
    assert torch.equal(part.reference, images(cone)[chosen])
    volume = estimate.clone()
    volume[chosen] = images(cone, seed=8)[chosen]
    torch.testing.assert_close(part.residual(volume[chosen]), measurement.residual(volume), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.misfit(volume[chosen]), measurement.misfit(volume), rtol=1e-4, atol=1e-5)


def test_coupled_slices_are_not_chosen_without_an_estimate(cone):
    with pytest.raises(InputError, match=r"ConeBeamCT measures slices together; .*measurement\.given") as caught:
        measure(cone)[[1]]
    assert "\n" not in str(caught.value)


# --- a value --------------------------------------------------------------------------------------------------


def test_frozen(cone):
    measurement = measure(cone)
    given = measurement.given(lambda: images(cone))
    assert measurement.estimate is None
    assert given.estimate is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        measurement.estimate = images(cone)  # type: ignore[misc]


@table
def test_to(name):
    measurement = measure(OPERATORS[name]()).to("meta")
    assert measurement.y.is_meta
    assert measurement.reference is not None
    assert measurement.reference.is_meta
    assert measurement.operator.zeros().is_meta
    assert measurement.sigma_y == 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@table
def test_to_gpu(name):
    measurement = measure(OPERATORS[name]())
    x = images(measurement.operator, seed=7)
    expected = measurement.misfit(x)
    moved = measurement.to("cuda")
    torch.testing.assert_close(moved.misfit(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_residual_is_relative_to_the_measurement():
    measurement = measure(ParallelBeamCT(SHAPE, 9), sigma_y=0.0)
    reference = measurement.reference
    assert reference is not None
    assert measurement.relative_residual(reference) < 1e-6
    assert measurement.relative_residual(1.5 * reference) == pytest.approx(0.5, abs=1e-5)
