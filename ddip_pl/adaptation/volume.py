"""D3IP: one set of LoRA weights for the whole volume (Chung & Ye 2024, Algorithm 2)."""

from typing import Any

import torch
from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.adaptation.lora import LoRA
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import STEPS


class VolumeAdaptation(Adaptation):
    """AdamW on `E_i || y_i - A D_theta(x_t^i | y_i) ||^2`, the mean over slices estimated from a few random ones.

    Its cost and the number of adapted parameters do not depend on the number of slices.

    Args:
        slices: K, random slices of one gradient step.
        steps: L, gradient steps at each timestep.
        learning_rate: of AdamW.
        ema: share of the earlier weights in their running average over gradient steps, with which sampling is done;
            0 samples with the latest ones.
        discrepancy: gradient steps end, until the next timestep, where the loss is at most that of noise,
            `(discrepancy sigma_y)^2` a measured value (Morozov's principle): the rest would be fitted to the noise.
            0 makes all the steps, as published.
        horizon: zeta; the prior is adapted for zeta <= t <= T - zeta only (constrained horizon).
        rank: of the LoRA weights.
        bias: train biases too.
        dropout: of the LoRA path.
    """

    def __init__(
        self,
        slices: int = 6,
        steps: int = 10,
        learning_rate: float = 1e-3,
        ema: float = 0.0,
        discrepancy: float = 0.0,
        horizon: int = 40,
        rank: int = 4,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        for name, value in (("slices", slices), ("steps", steps), ("learning_rate", learning_rate)):
            if value <= 0:
                raise InputError(f"{name} of the adaptation is {value}; give a positive number")
        if not 0 <= horizon < STEPS / 2:
            raise InputError(
                f"horizon of the adaptation is {horizon}; give 0 .. {STEPS // 2 - 1}, or nothing is adapted"
            )
        if not 0 <= ema < 1:
            raise InputError(f"ema of the adaptation is {ema}; give a share of at least 0 and below 1")
        if discrepancy < 0:
            raise InputError(f"discrepancy of the adaptation is {discrepancy}; give 0 or more")
        self.ema, self.discrepancy = ema, discrepancy
        self.slices, self.steps, self.learning_rate, self.horizon = slices, steps, learning_rate, horizon
        self.rank, self.bias, self.dropout = rank, bias, dropout

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        if self.slices > len(measurement):
            raise InputError(
                f"the adaptation draws {self.slices} slices, the volume has {len(measurement)}; lower adaptation.slices"
            )
        self.denoiser, self.measurement = denoiser, measurement
        self.lora = LoRA(denoiser.network, self.rank, self.bias, self.dropout)
        self.optimizer = torch.optim.AdamW(self.lora.parameters(), self.learning_rate)
        self.latest = self.average = self.lora.state_dict()

    def draw_slices(self) -> Tensor:
        """Indices of the K slices of a gradient step: random ones, without repetition."""
        return torch.randperm(len(self.measurement))[: self.slices]

    @torch.enable_grad()
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> float | None:
        if not self.horizon <= t <= STEPS - self.horizon:
            return None
        self.lora.load_state_dict(self.latest)
        for _ in range(self.steps):
            chosen = self.draw_slices()
            part = self.measurement[chosen]
            self.denoiser.weights = self.lora.merged(training=True)
            estimate = estimator(self.denoiser, x_t[chosen], t, part)
            loss = part.residual(estimate.mean).abs().square().sum() / len(chosen)
            if loss <= 1.01 * (self.discrepancy * part.sigma_y) ** 2 * part.values:
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.latest = self.lora.state_dict()
            self.average = {name: new.lerp(self.average[name], self.ema) for name, new in self.latest.items()}
        self.use_average()
        return loss.item()

    @torch.no_grad()
    def use_average(self) -> None:
        """Let the denoiser compute with the averaged weights."""
        self.lora.load_state_dict(self.average)
        self.denoiser.weights = self.lora.merged()

    def finish(self) -> dict[str, Tensor]:
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
