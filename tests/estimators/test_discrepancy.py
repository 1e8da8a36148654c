"""The discrepancy principle: the data consistency does not go on into the noise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import ParallelBeamCT
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.solvers.cg import conjugate_gradient

SIZE = 32


def squares(slices: int = 3) -> Tensor:
    x = torch.zeros(slices, 1, SIZE, SIZE)
    for i in range(slices):
        x[i, 0, 8 : 20 + i, 6 + i : 22] = 0.8
    return x


def measure(sigma_y: float, angles: int = 24) -> Measurement:
    operator, x = ParallelBeamCT(SIZE, angles), squares()
    y = simulate(x, operator, sigma_y, torch.Generator().manual_seed(0))
    return Measurement(y, operator, sigma_y, "squares", x)


def squared_residual(measurement: Measurement, x: Tensor) -> Tensor:
    return measurement.residual(x).square().flatten(1).sum(1)


def noise(measurement: Measurement) -> float:
    return measurement.sigma_y**2 * measurement.y[0].numel()


def test_conjugate_gradients_stop_exactly_where_the_residual_has_fallen_enough() -> None:
    torch.manual_seed(0)
    a, r = torch.randn(30, 20, dtype=torch.float64), torch.randn(3, 30, dtype=torch.float64)
    least = (r - r @ torch.linalg.pinv(a).T @ a.T).square().sum(1)
    wanted = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64) * (r.square().sum(1) - least)
    x = conjugate_gradient(lambda v: v @ a.T @ a, r @ a, 40, decrease=wanted)
    fallen = r.square().sum(1) - (r - x @ a.T).square().sum(1)
    assert torch.allclose(fallen[:2], wanted[:2], rtol=1e-10)
    assert torch.allclose(fallen[2], wanted[2], rtol=1e-6)


def test_nothing_is_done_where_no_decrease_is_wanted_and_everything_where_it_is_out_of_reach() -> None:
    torch.manual_seed(1)
    a, r = torch.randn(12, 8, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    x = conjugate_gradient(lambda v: v @ a.T @ a, r @ a, 30, decrease=torch.tensor([-1.0, 1e9], dtype=torch.float64))
    assert not x[0].any()
    assert torch.allclose(x[1], torch.linalg.pinv(a) @ r[1], atol=1e-8)


def test_it_is_differentiable_in_the_shortened_step_too() -> None:
    torch.manual_seed(2)
    a, r = torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([0.6, 0.8], dtype=torch.float64) * r.detach().square().sum(1) * 0.5
    assert torch.autograd.gradcheck(
        lambda r: conjugate_gradient(lambda v: v @ a.T @ a, r @ a, 4, decrease=wanted), (r,), atol=1e-5
    )


def test_dds_leaves_the_residual_at_the_level_of_the_noise() -> None:
    measurement = measure(0.01)
    start = measurement.operator.pseudo_inverse(measurement.y) * 0.5
    assert (squared_residual(measurement, start) > 2 * noise(measurement)).all()
    stopped, _ = DDS(30, discrepancy=1).condition(start, measurement, {})
    assert torch.allclose(squared_residual(measurement, stopped), torch.tensor(noise(measurement)), rtol=1e-3)
    twice, _ = DDS(30, discrepancy=2).condition(start, measurement, {})
    assert torch.allclose(squared_residual(measurement, twice), torch.tensor(4 * noise(measurement)), rtol=1e-3)


def test_dds_fits_less_noise_with_the_discrepancy_principle() -> None:
    measurement = measure(0.01)
    truth = squares()
    error = {
        discrepancy: (DDS(30, discrepancy=discrepancy).condition(0 * truth, measurement, {})[0] - truth).norm()
        for discrepancy in (0, 1)
    }
    assert error[1] < 0.8 * error[0]


def test_dds_leaves_an_image_alone_that_agrees_with_the_measurement_already() -> None:
    measurement = measure(0.01)
    truth = squares()
    assert torch.equal(DDS(5, discrepancy=1.2).condition(truth, measurement, {})[0], truth)


def test_without_noise_the_discrepancy_principle_changes_nothing() -> None:
    measurement = measure(0.0)
    start = torch.zeros_like(squares())
    plain, stopped = (DDS(8, discrepancy=d).condition(start, measurement, {})[0] for d in (0, 1))
    assert torch.allclose(plain, stopped, atol=1e-6)


@pytest.mark.parametrize("settings", [{"discrepancy": -1.0}, {"discrepancy": 1.0, "gamma": 5.0}])
def test_dds_refuses_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="discrepancy"):
        DDS(5, **settings)
