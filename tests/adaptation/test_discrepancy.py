"""Adaptation stops at noise level, and sampling uses the running average of its weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import make_network
from torch import Tensor

from ddip_pl.adaptation import LoraTraining, VolumeAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import Measurement, ParallelBeamCT, simulate
from ddip_pl.prior.denoiser import Denoiser

SIZE = 32


def measure(sigma_y: float, angles: int = 24) -> Measurement:
    """A measurement of three slightly different squares."""
    x = torch.zeros(3, 1, SIZE, SIZE)
    for i in range(3):
        x[i, 0, 8 : 20 + i, 6 + i : 22] = 0.8
    operator = ParallelBeamCT((3, SIZE, SIZE), angles)
    return Measurement(simulate(x, operator, sigma_y, torch.Generator().manual_seed(0)), operator, sigma_y, x)


def adapted(measurement: Measurement, **settings: Any) -> tuple[VolumeAdaptation, list[dict[str, Tensor]]]:
    """An adaptation after four timesteps, and the weights that sampling used at each."""
    torch.manual_seed(0)
    denoiser = Denoiser(make_network()).requires_grad_(False)
    training = replace(LoraTraining.published(), **({"steps": 3, "horizon": 0} | settings))
    adaptation = VolumeAdaptation(2, training=training)
    adaptation.start(denoiser, measurement)
    x, seen = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), []
    for t in (400, 300, 200, 100):
        adaptation.adapt(DDS(3, gamma="infinite"), x, t)
        seen.append(adaptation.lora.state_dict())
    return adaptation, seen


def test_sampling_uses_the_running_average_of_the_adapted_weights() -> None:
    measurement = measure(1e-3)
    latest, _ = adapted(measurement, steps=1, ema=0)
    averaged, seen = adapted(measurement, steps=1, ema=0.5)
    name = next(n for n in latest.latest if "lora_B" in n)
    # The gradient steps do not depend on the average: only what sampling uses does.
    assert torch.allclose(averaged.latest[name], latest.latest[name])
    assert not torch.allclose(seen[-1][name], latest.latest[name], rtol=0.05)
    _, history = adapted(measurement, steps=1, ema=0)
    expected = torch.zeros_like(history[0][name])  # LoRA's B starts there
    for weights in history:
        expected = 0.5 * expected + 0.5 * weights[name]
    assert torch.allclose(seen[-1][name], expected, atol=1e-7)


def test_the_adaptation_stops_at_the_level_of_the_noise() -> None:
    still, _ = adapted(measure(10.0), discrepancy=1)  # all of the measurement is noise
    moved, _ = adapted(measure(10.0), discrepancy=0)
    name = next(n for n in still.latest if "lora_B" in n)
    assert not still.latest[name].any()
    assert moved.latest[name].any()


def test_the_adaptation_goes_on_where_there_is_more_than_noise() -> None:
    there, _ = adapted(measure(1e-5), discrepancy=1)
    plain, _ = adapted(measure(1e-5), discrepancy=0)
    assert all(torch.equal(there.latest[name], plain.latest[name]) for name in plain.latest)


def test_a_saved_adaptation_goes_on_with_latest_and_average() -> None:
    measurement = measure(1e-3)
    adaptation, _ = adapted(measurement, ema=0.5)
    state = adaptation.state_dict()
    adaptation.finish()
    again, _ = adapted(measurement, ema=0.5, steps=1)
    again.load_state_dict(state)
    for name in state["latest"]:
        assert torch.equal(again.latest[name], state["latest"][name])
        assert torch.equal(again.lora.state_dict()[name], state["average"][name])


@pytest.mark.parametrize("settings", [{"ema": 1.0}, {"ema": -0.1}, {"discrepancy": -1.0}])
def test_training_refuses_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        LoraTraining(**settings)  # type: ignore[arg-type]
