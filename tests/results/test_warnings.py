"""Warnings about results: each rule fires where it should, and only there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ddip_pl.baselines import DirectInverse
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT, simulate
from ddip_pl.results.result import Result
from ddip_pl.results.warnings import warnings

GOOD: dict[str, Any] = {"discrepancy": 0.9, "input_discrepancy": 20.0, "null_space_energy": 0.1}


def images(brightest: float = 1.0, size: int = 128) -> Tensor:
    """A quarter of the image is bright, the rest is air."""
    x = torch.zeros(2, 1, size, size)
    x[..., : size // 2, : size // 2] = brightest
    return x


def steps(before: float = 1.0, after: float = 0.9, divergences: int = 0) -> list[dict[str, float]]:
    row = {"loss_before": before, "loss_after": after} | ({"divergences": divergences} if divergences else {})
    return [{"t": 100.0}, row, row]


def test_nothing_to_say_about_a_good_result() -> None:
    assert warnings(images(), GOOD, steps(), 128) == []
    assert warnings(images(), {}, [], None) == []


@pytest.mark.parametrize(
    ("discrepancy", "message"),
    [
        (0.05, "0.05 of the noise: sigma_y is too large, or"), (0.11, None), (1.9, None),
        (2.1, "2.1 times the noise: the images do not fit"), (1e4, "1e+04 times"),
    ],
)  # fmt: skip
def test_a_residual_far_from_the_noise(discrepancy: float, message: str | None) -> None:
    found = warnings(images(), GOOD | {"discrepancy": discrepancy}, [], 128)
    assert [message in warning for warning in found] == [True] if message else found == []


def test_a_direct_inversion_does_not_know_the_noise() -> None:
    assert warnings(images(), {"discrepancy": 20.0, "input_discrepancy": 20.0}, [], None) == []


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (steps(), None), (steps(1.0, 1.2), None), (steps(1.0, 1.3), "raised its loss 1.3 times"),
        (steps(0.0, 0.0), None), (steps(divergences=2), "diverged 4 times; lower its learning_rate"),
    ],
)  # fmt: skip
def test_an_adaptation_that_ran_away(trajectory: list[dict[str, float]], message: str | None) -> None:
    found = warnings(images(), GOOD, trajectory, 128)
    assert [message in warning for warning in found] == [True] if message else found == []


@pytest.mark.parametrize(("energy", "fires"), [(0.49, False), (0.51, True)])
def test_a_prior_that_decided_most_of_the_image(energy: float, fires: bool) -> None:
    found = warnings(images(), GOOD | {"null_space_energy": energy}, [], 128)
    assert found == (["51% of the image's energy leaves no trace in the data; the prior alone decided it"] * fires)


@pytest.mark.parametrize(("size", "fires"), [(63, True), (64, False), (512, False), (513, True)])
def test_a_size_that_the_prior_does_not_know(size: int, fires: bool) -> None:
    found = warnings(images(size=size), GOOD, [], 128)
    assert [f"{size} x {size} pixels are far from the prior's 128 x 128" in warning for warning in found] == [
        True
    ] * fires
    assert warnings(images(size=size), GOOD, [], None) == []


@pytest.mark.parametrize(("brightest", "fires"), [(1e-3, True), (0.2, False), (1.4, False), (1.6, True), (1000, True)])
def test_intensities_that_the_prior_does_not_know(brightest: float, fires: bool) -> None:
    for sign in (1, -1):
        found = warnings(images(sign * brightest), GOOD, [], 128)
        assert ["the prior knows images from 0 to 1" in warning for warning in found] == [True] * fires
    assert warnings(images(brightest), GOOD, [], None) == []


def test_a_few_bright_voxels_do_no_harm() -> None:
    x = images()
    x[0, 0, 100, 100:110] = 50
    assert warnings(x, GOOD, [], 128) == []


def result(operator: LinearOperator, factor: float = 1.0, **changes: Any) -> Result:
    """The truth, times a factor."""
    x = images(size=operator.shape[1])
    y = simulate(x, operator, 0.01, torch.Generator().manual_seed(0))
    return Result(factor * x, Measurement(y, operator, 0.01, x), **changes)


def test_warnings_of_a_result() -> None:
    operator = ParallelBeamCT((2, 32, 32), angles=30)
    assert result(operator).warnings == []
    assert result(operator, prior_size=32).warnings == []
    [wrong] = result(operator, 1.2).warnings
    assert "times the noise" in wrong
    scaled, *_ = result(operator, 1e-3, prior_size=32).warnings[1:]
    assert "99% of the voxels are below 0.001" in scaled
    facts = result(operator, 1.2).facts()
    assert facts["warnings"] == [wrong]


def test_a_direct_inversion_is_not_blamed_for_its_residual() -> None:
    measurement = result(ParallelBeamCT((2, 32, 32), angles=8)).measurement
    found = DirectInverse().reconstruct(measurement)
    assert found.metrics()["discrepancy"] > 2
    assert found.warnings == []


def test_what_the_guard_undid_is_told() -> None:
    found = result(ParallelBeamCT((2, 32, 32), angles=30), trajectory=[{"seconds": 1.0, "divergences": 3}])
    assert found.divergences == 3
    assert ["diverged 3 times" in warning for warning in found.warnings] == [True]
