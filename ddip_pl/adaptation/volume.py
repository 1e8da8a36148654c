"""D3IP: one set of LoRA weights for the whole volume (Chung & Ye 2024, Algorithm 2)."""

from typing import Any

import torch
from torch import Tensor

from ddip_pl.adaptation.adaptation import Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.guard import attempts, ran_away
from ddip_pl.adaptation.lora import LoRA, LoraWeights
from ddip_pl.adaptation.training import LoraAdaptation, LoraTraining
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.settings import HalfOpenUnitInterval, PositiveInt, checked


@checked
class VolumeAdaptation(LoraAdaptation):
    """AdamW on `E_i || y_i - A D_theta(x_t^i | y_i) ||^2`, the mean over slices estimated from a few random ones.

    Its cost and the number of adapted parameters do not depend on the number of slices. If slices are coupled, the loss
    is that of the K slices with all others held at their posterior mean, which is computed once per timestep.

    Args:
        slices: K, the number of random slices per gradient step.
        neighbours: draw neighbouring slices i .. i+K-1 with random i, for estimators that couple them (D3IP mbir).
        dropout: of the LoRA updates.
        training: settings of the training.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        slices: PositiveInt = 3,
        neighbours: bool = False,
        dropout: HalfOpenUnitInterval = 0.0,
        training: LoraTraining = LoraTraining(),  # noqa: B008 (frozen)
    ):
        super().__init__(training)
        self.slices, self.neighbours, self.dropout = slices, neighbours, dropout

    @property
    def images_at_once(self) -> int:
        return self.slices

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        if self.slices > len(measurement):
            raise InputError(
                f"the adaptation draws {self.slices} slices, the volume has {len(measurement)}; lower adaptation.slices"
            )
        if self.initial is not None and self.initial.slices:
            raise InputError(f"start_from has weights for each of {self.initial.slices} slices; give one set")
        lora = LoRA(denoiser.network, self.training.rank, self.training.bias, self.dropout)
        if self.initial is not None:
            self.load(lora, self.initial.of_slice(0))
        self.begin(denoiser, measurement, lora)
        self.latest = self.average = lora.state_dict()
        self.use_average()

    def draw_slices(self) -> Tensor:
        """Indices of the K slices for a gradient step: distinct random slices, or random neighbours."""
        if self.neighbours:
            return torch.randint(len(self.measurement) - self.slices + 1, (1,)) + torch.arange(self.slices)
        return torch.randperm(len(self.measurement))[: self.slices]

    @torch.enable_grad()
    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        if not self.training.within_horizon(t):
            return Adapted(self.adapted, {})
        with torch.no_grad():
            measurement = self.measurement.given(lambda: estimator(self.adapted, x_t, t, self.measurement).mean)
        before, divergences = (self.latest, self.average), 0
        for learning_rate in attempts(self.training.learning_rate):
            first, last, diverged = self.train(estimator, x_t, t, measurement, learning_rate, on_gradient_step)
            if not diverged:
                break
            (self.latest, self.average), last = before, first
            divergences += 1
        self.use_average()
        return Adapted(self.adapted, self.figures(first, last, self.average, divergences))

    def train(
        self,
        estimator: PosteriorMean,
        x_t: Tensor,
        t: int,
        measurement: Measurement,
        learning_rate: float,
        on_gradient_step: OnGradientStep,
    ) -> tuple[Tensor, Tensor, bool]:
        """The gradient steps of a timestep; returns the first and the last loss, and whether the losses ran away."""
        self.lora.load_state_dict(self.latest)
        optimizer = torch.optim.AdamW(self.lora.parameters(), learning_rate)
        for step in range(self.training.steps):
            denoiser = self.denoiser.with_weights(self.lora.merged(training=True))
            chosen = self.draw_slices()
            part = measurement[chosen]
            losses, enough = self.losses(estimator, denoiser, x_t[chosen], t, part)
            loss, energy = losses.mean(), part.y.abs().square().mean()
            if step == 0:
                first, first_energy = loss.detach(), energy
            usual = first * (energy / first_energy).nan_to_num(1).clamp_min(1)  # some slices have more to fit
            diverged, done = torch.stack([ran_away(loss, usual), loss <= enough.mean()]).tolist()
            if diverged or done:
                return first, loss, diverged
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.latest = self.lora.state_dict()
            ema = self.training.ema
            self.average = {name: new.lerp(self.average[name], ema) for name, new in self.latest.items()}
            on_gradient_step(step + 1, self.training.steps)
        with torch.no_grad():  # the last weights, on the same slices: drawing others would change all random numbers
            denoiser = self.denoiser.with_weights(self.lora.merged())
            losses, _ = self.losses(estimator, denoiser, x_t[chosen], t, part)
        return first, loss, bool(ran_away(losses.mean(), usual))

    @torch.no_grad()
    def use_average(self) -> None:
        """Set the adapted denoiser to the averaged weights."""
        self.lora.load_state_dict(self.average)
        self.adapted = self.denoiser.with_weights(self.lora.merged())

    def finish(self) -> LoraWeights:
        weights = LoraWeights(self.average, self.training.rank, self.training.bias)
        self.lora.remove()
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest = {name: value.to(self.latest[name]) for name, value in state["latest"].items()}
        self.average = {name: value.to(self.latest[name]) for name, value in state["average"].items()}
        self.use_average()
