"""The noise level and the degrees of freedom of a measurement, and what a wrong noise level does."""

import logging
from dataclasses import replace

import pytest
import torch
from helpers import smooth_maps

import ddip_pl
from ddip_pl.physics import SENSE, Birdcage, Measurement, ParallelBeamCT, RandomLines, simulate
from ddip_pl.physics.noise import degrees_of_freedom, kspace_noise, surplus_noise

SIZE, SIGMA = 32, 0.03


def rough(slices: int = 2) -> torch.Tensor:
    """Complex images with so much detail that the outermost frequencies are no longer noise."""
    return torch.rand(slices, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def measured(operator, x, sigma_y: float = SIGMA) -> Measurement:
    return Measurement(simulate(x, operator, sigma_y, torch.Generator().manual_seed(1)), operator, sigma_y, x)


def sense(acceleration: float = 1, slices: int = 2) -> SENSE:
    return SENSE((slices, SIZE, SIZE), RandomLines(acceleration), Birdcage(8))


def test_degrees_of_freedom_are_the_rank_of_the_operator():
    """Of its matrix, column by column; two real unknowns make a complex one."""
    maps = smooth_maps(4, 4, coils=3)
    maps[..., 0] = 0  # four pixels that no coil sees
    for operator, parts in (ParallelBeamCT((2, 4, 4), 16), 1), (SENSE((1, 4, 4), torch.ones(4, 4), maps), 2):
        basis = torch.eye(operator.zeros()[0].numel()).view(-1, *operator.domain[1:])
        columns = [operator.select([0])(one[None]) for one in basis]
        rows = [torch.view_as_real(y).flatten() if y.is_complex() else y.flatten() for y in columns]
        rank = int(torch.linalg.matrix_rank(torch.stack(rows).double(), rtol=1e-5)) / parts
        found = degrees_of_freedom(operator, operator(operator.zeros()))
        assert found.tolist() == [rank] * operator.shape[0]


def test_there_are_no_more_degrees_of_freedom_than_values():
    operator = ParallelBeamCT((2, 16, 16), 3)
    y = operator(operator.zeros())
    assert degrees_of_freedom(operator, y).tolist() == [y[0].numel()] * 2


def test_least_squares_tells_the_noise_level_where_the_outermost_frequencies_do_not():
    measurement = measured(sense(), rough())
    assert kspace_noise(measurement.y.flatten(2), measurement.operator.radius) > 1.2 * SIGMA
    assert surplus_noise(measurement.operator, measurement.y) == pytest.approx(SIGMA, rel=0.02)
    assert measurement.operator.noise_level(measurement.y) == pytest.approx(SIGMA, rel=0.02)


def test_least_squares_tells_nothing_without_surplus_data():
    operator = ParallelBeamCT((2, 16, 16), 9)
    assert surplus_noise(operator, operator(torch.rand(operator.domain))) == float("inf")


def test_a_noise_level_that_is_clearly_too_high_is_reported_and_corrected(caplog):
    measurement = measured(sense(), rough())
    wrong = replace(measurement, sigma_y=1.3 * SIGMA)
    with caplog.at_level(logging.WARNING):
        assert measurement.with_surplus().surplus == 1
        assert replace(measurement, sigma_y=0.7 * SIGMA).with_surplus().surplus == 1
        assert not caplog.records
        corrected = wrong.with_surplus()
    [record] = caplog.records
    assert "the noise level of 0.039 is too high" in record.getMessage()
    assert "0.03" in record.getMessage()
    # What the truth leaves: 7/8 of it is known from the data, and only 1/8 depends on the wrong level.
    truth = measurement.misfit(measurement.reference).sum()
    assert float(corrected.noise_energy().sum() / truth) == pytest.approx(1 + (1.3**2 - 1) / 8, rel=0.02)
    assert float(wrong.noise_energy().sum() / truth) == pytest.approx(1.3**2, rel=0.02)
    assert float(corrected[:1].noise_energy()) == pytest.approx(float(corrected.noise_energy()[0]))


def test_reconstruct_reports_a_noise_level_that_is_too_high(caplog):
    measurement = measured(sense(), rough())
    with caplog.at_level(logging.WARNING):
        ddip_pl.reconstruct(measurement.y, measurement.operator, sigma_y=2 * SIGMA, method="fbp", progress=False)
    assert "is too high" in caplog.text
