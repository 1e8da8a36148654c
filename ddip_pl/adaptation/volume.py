"""D3IP: one set of LoRA weights for the whole volume (Chung & Ye 2024, Algorithm 2)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddip_pl.adaptation.adaptation import Figures
from ddip_pl.adaptation.lora import LoRA, Weights
from ddip_pl.adaptation.trained import TrainedAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class VolumeAdaptation(TrainedAdaptation):
    """AdamW on `E_i || y_i - A D_theta(x_t^i | y_i) ||^2`, the mean over slices estimated from a few random ones.

    Its cost and the number of adapted parameters do not depend on the number of slices. Where slices are coupled, the
    loss is that of the K slices with all others held at their posterior mean, found once at each timestep.

    Args:
        slices: K, random slices of one gradient step.
        neighbours: the K slices are i .. i+K-1 with random i, for estimators that couple them (D3IP mbir).
        dropout: of the LoRA path.
        **settings: of the training, see `TrainedAdaptation`.
    """

    def __init__(self, slices: int = 6, neighbours: bool = False, dropout: float = 0.0, **settings: Any):
        super().__init__(**settings)
        if slices < 1:
            raise InputError(f"slices of the adaptation is {slices}; give a positive number")
        self.slices, self.neighbours, self.dropout = slices, neighbours, dropout

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        if self.slices > len(measurement):
            raise InputError(
                f"the adaptation draws {self.slices} slices, the volume has {len(measurement)}; lower adaptation.slices"
            )
        if len(self.initial) > 1:
            raise InputError(f"start_from has weights for each of {len(self.initial)} slices; give those of a volume")
        self.begin(denoiser, measurement, LoRA(denoiser.network, self.rank, self.bias, self.dropout))
        self.optimizer = torch.optim.AdamW(self.lora.parameters(), self.learning_rate)
        self.latest = self.average = self.lora.state_dict()
        self.use_average()

    def draw_slices(self) -> Tensor:
        """Indices of the K slices of a gradient step: random ones, without repetition, or random neighbours."""
        if self.neighbours:
            return torch.randint(len(self.measurement) - self.slices + 1, (1,)) + torch.arange(self.slices)
        return torch.randperm(len(self.measurement))[: self.slices]

    @torch.enable_grad()
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> Figures:
        if not self.within_horizon(t):
            return {}
        self.hold(estimator, x_t, t)
        self.lora.load_state_dict(self.latest)
        first: Tensor | None = None
        for step in range(self.steps):
            self.denoiser.weights = self.lora.merged(training=True)
            chosen = self.draw_slices()
            loss = self.losses(estimator, x_t, t, chosen).mean()
            first = loss if first is None else first
            if loss <= self.enough(chosen).mean():
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.latest = self.lora.state_dict()
            self.average = {name: new.lerp(self.average[name], self.ema) for name, new in self.latest.items()}
            self.on_gradient_step(step + 1, self.steps)
        self.use_average()
        assert first is not None
        return self.figures(first, loss, self.average)

    @torch.no_grad()
    def hold(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> None:
        """Estimate all slices if they are coupled; the loss of some holds the others there."""
        if self.measurement.operator.coupled > 1:
            estimate = estimator(self.denoiser, x_t, t, self.measurement).mean
            self.measurement = replace(self.measurement, estimate=estimate)

    @torch.no_grad()
    def use_average(self) -> None:
        """Let the denoiser compute with the averaged weights."""
        self.lora.load_state_dict(self.average)
        self.denoiser.weights = self.lora.merged()

    def finish(self) -> Weights:
        self.denoiser.weights = {}
        weights = self.lora.state_dict()
        self.lora.remove()
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "average": self.average, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lora.load_state_dict(state["latest"])
        self.latest = self.lora.state_dict()
        self.average = {name: value.to(self.latest[name]) for name, value in state["average"].items()}
        self.use_average()
        self.optimizer.load_state_dict(state["optimizer"])
