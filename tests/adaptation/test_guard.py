"""Gradient steps that run away from the data: undone, tried again with half the learning rate, then left out."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network
from torch import Tensor

from ddip_pl.adaptation import (
    LoraTraining,
    MetaAdaptation,
    SelfTraining,
    SlicewiseAdaptation,
    VolumeAdaptation,
)
from ddip_pl.adaptation.guard import attempts, ran_away
from ddip_pl.adaptation.training import LoraAdaptation
from ddip_pl.estimators import DDS
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.reconstruction import Reconstruction, Sampler

Change = Callable[[Tensor], Tensor]

SIZE, SLICES = 16, 4
STEPS = 3
ESTIMATOR = DDS(2)


def training(**changes: Any) -> LoraTraining:
    return replace(LoraTraining.published(), **({"steps": STEPS, "horizon": 0, "ema": 0.5} | changes))


def too_fast(**changes: Any) -> LoraTraining:
    """Settings beyond the range that is allowed."""
    made = training(**changes)
    object.__setattr__(made, "learning_rate", 10.0)
    return made


def measure(of_image: Change = lambda x: x, of_data: Change = lambda y: y) -> Measurement:
    operator = ParallelBeamCT((SLICES, SIZE, SIZE), angles=8)
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    return Measurement(of_data(operator(of_image(x))), operator, 1e-3)


def start(adaptation: Any, measurement: Measurement | None = None) -> Any:
    torch.manual_seed(0)
    adaptation.start(Denoiser(make_network(num_channels=32)).requires_grad_(False), measurement or measure())
    return adaptation


def x_t(seed: int = 1) -> Tensor:
    return torch.randn(SLICES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def weights(adaptation: Any) -> dict[str, Tensor]:
    """A copy of the latest and the averaged weights."""
    state = adaptation.state_dict()
    flat = {
        f"{kind} {name}": value
        for kind, part in state.items()
        for name, value in (part.items() if isinstance(part, dict) else [("", part)])
    }
    return {name: value.clone() for name, value in flat.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Spoilt:
    """Losses that are NaN at some evaluations, counted from 0; keeps the learning rates of all attempts."""

    def __init__(self, patch: pytest.MonkeyPatch, *at: int, slices: tuple[int, ...] = (), value: float = float("nan")):
        self.number, self.rates = 0, list[float]()
        losses, optimizer = LoraAdaptation.losses, torch.optim.AdamW

        def spoilt(adaptation: Any, *args: Any) -> tuple[Tensor, Tensor]:
            found, enough = losses(adaptation, *args)
            if self.number in at:
                wrong = torch.zeros_like(found)
                wrong[list(slices) or slice(None)] = value
                found = found + wrong
            self.number += 1
            return found, enough

        def counted(parameters: Any, rate: float) -> Any:
            self.rates.append(rate)
            return optimizer(parameters, rate)

        patch.setattr(LoraAdaptation, "losses", spoilt)
        patch.setattr(torch.optim, "AdamW", counted)


KINDS: dict[str, Any] = {"volume": partial(VolumeAdaptation, SLICES, neighbours=True), "slices": SlicewiseAdaptation}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def test_which_losses_have_run_away() -> None:
    nan, inf = float("nan"), float("inf")
    losses = torch.tensor([1.0, 9.9, 10.1, nan, inf, 0.0, -inf])
    assert ran_away(losses, torch.tensor(1.0)).tolist() == [False, False, True, True, True, False, True]
    assert ran_away(losses, torch.tensor(nan)).all()
    assert ran_away(losses, torch.tensor(inf)).tolist() == [False, False, False, True, True, False, True]
    assert list(attempts(0.8)) == [0.8, 0.4, 0.2]


@each_kind
@pytest.mark.parametrize("at", [0, 1, STEPS])
def test_a_nan_is_undone_and_tried_again_with_half_the_rate(
    kind: Any, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the last evaluation, after the last gradient step. The result is that of a run with half the rate."""
    half = start(kind(training=training(learning_rate=5e-4)))
    half.adapt(ESTIMATOR, x_t(), 100)
    adaptation = start(kind(training=training(learning_rate=1e-3)))
    spoilt = Spoilt(monkeypatch, at)
    _, figures = adaptation.adapt(ESTIMATOR, x_t(), 100)
    assert spoilt.rates == [1e-3, 5e-4]
    assert figures["divergences"] == (SLICES if kind is SlicewiseAdaptation else 1)
    assert same(weights(adaptation), weights(half))  # whatever the random numbers, all slices are drawn
    assert 0 < figures["loss_after"] < figures["loss_before"]


@each_kind
def test_after_three_attempts_the_timestep_is_left_unadapted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = start(kind(training=training()))
    adaptation.adapt(ESTIMATOR, x_t(), 200)
    before, eps = weights(adaptation), adaptation.adapted(x_t(), 100)[1]
    spoilt = Spoilt(monkeypatch, 1, 3, 5)
    adapted, figures = adaptation.adapt(ESTIMATOR, x_t(), 100)
    assert spoilt.rates == [1e-3, 5e-4, 2.5e-4]
    assert spoilt.number == 6
    assert same(weights(adaptation), before)
    assert torch.equal(adapted(x_t(), 100)[1], eps)
    assert figures["divergences"] == 3 * (SLICES if kind is SlicewiseAdaptation else 1)
    assert figures["loss_after"] == figures["loss_before"] > 0
    _, figures = adaptation.adapt(ESTIMATOR, x_t(), 50)  # the next timestep begins with the whole rate again
    assert spoilt.rates[3:] == [1e-3]
    assert "divergences" not in figures
    assert not same(weights(adaptation), before)


def test_a_slice_that_runs_away_changes_nothing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = start(SlicewiseAdaptation(training()))
    before = plain.average.clone()
    plain.adapt(ESTIMATOR, x_t(), 100)
    adaptation = start(SlicewiseAdaptation(training()))
    # In the last evaluation of the first attempt, when the others are done; later attempts have only this slice.
    spoilt = Spoilt(monkeypatch, 3, 4, 5, slices=(0,))
    _, figures = adaptation.adapt(ESTIMATOR, x_t(), 100)
    assert figures["divergences"] == 3
    assert spoilt.rates == [1e-3, 5e-4, 2.5e-4]
    assert torch.equal(adaptation.average[0], before[0])
    assert torch.equal(adaptation.average[1:], plain.average[1:])
    assert not torch.equal(plain.average[0], before[0])


@each_kind
def test_a_loss_that_rises_is_as_bad_as_a_nan(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = start(kind(training=training()))
    Spoilt(monkeypatch, 2, value=1e6)
    assert adaptation.adapt(ESTIMATOR, x_t(), 100).figures["divergences"] > 0


def test_slices_with_more_to_fit_are_not_taken_for_a_rise() -> None:
    """Of two slices, one is a thousand times as bright; each gradient step draws one of them."""

    def brighter(y: Tensor) -> Tensor:
        return y * torch.tensor([1.0, 1000.0, 1.0, 1000.0])[:, None, None, None]

    adaptation = start(VolumeAdaptation(1, training=training(steps=12)), measure(of_data=brighter))
    noise = x_t()
    figures = adaptation.adapt(ESTIMATOR, noise, 20).figures
    assert figures["loss_before"] > 0
    assert "divergences" not in figures


TOO_FAST: dict[str, Any] = {
    "d3ip": lambda: VolumeAdaptation(2, training=too_fast()),
    "d3ip, one step": lambda: VolumeAdaptation(2, training=too_fast(steps=1)),
    "ddip": lambda: SlicewiseAdaptation(too_fast()),
    "meta": lambda: MetaAdaptation(VolumeAdaptation(2, training=too_fast()), SlicewiseAdaptation(too_fast())),
}


@pytest.mark.parametrize("name", TOO_FAST)
def test_a_run_with_a_learning_rate_of_ten_is_the_run_without_adaptation(name: str) -> None:
    """With the shipped prior; without the guard all voxels are NaN."""

    def run(adaptation: Any) -> Any:
        torch.manual_seed(0)
        sampler = Sampler(steps=1, planes="slices")
        return Reconstruction(None, DDS(3, "infinite"), adaptation, sampler).reconstruct(measure())

    result, plain = run(TOO_FAST[name]()), run(None)
    assert result.divergences == result.facts()["divergences"] >= 3
    if name != "meta":  # it has two trajectories
        assert torch.allclose(result.images, plain.images, atol=1e-5)
    assert torch.isfinite(result.images).all()
    assert "divergences" not in plain.facts()


@pytest.mark.parametrize("learning_rate", [10.0, 1e-4])
def test_self_training_that_runs_away_leaves_the_prior_as_it_was(
    learning_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because of the rate, or because of a NaN."""
    adaptation = start(SelfTraining(steps=4, batch=2))
    adaptation.learning_rate = learning_rate
    if learning_rate < 1:
        monkeypatch.setattr(SelfTraining, "denoising_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
        monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    before = adaptation.denoiser(x_t(), 100)[1]
    adaptation.next_trajectory(x_t())
    adapted, figures = adaptation.adapt(ESTIMATOR, x_t(), 100)
    assert figures["divergences"] == 3
    assert torch.equal(adapted(x_t(), 100)[1], before)
    assert adaptation.finish().count == 0


def hot(values: Tensor) -> Tensor:
    """One of them a million."""
    values = values.clone()
    values[1, 0, 3, 5] = 1e6
    return values


ODD: dict[str, dict[str, Change]] = {
    "zero": {"of_data": torch.zeros_like},
    "hot voxel": {"of_image": hot},
    "hot value": {"of_data": hot},
}
METHODS: dict[str, Any] = {
    "dds": lambda: None,
    "d3ip": lambda: VolumeAdaptation(2, training=LoraTraining(steps=2)),
    "ddip": lambda: SlicewiseAdaptation(LoraTraining(steps=2)),
    "d3ip_em": lambda: SelfTraining(steps=3, batch=2),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_zeros_or_one_hot_value_give_finite_images(method: Any, odd: dict[str, Change], tiny_prior: Path) -> None:
    torch.manual_seed(0)
    sampler = Sampler(steps=3, planes="slices")
    result = Reconstruction(str(tiny_prior), None, method(), sampler).reconstruct(measure(**odd))
    assert torch.isfinite(result.images).all()
