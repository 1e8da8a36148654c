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
        held_out: share of the projection angles or phase-encoding lines, other ones at each gradient step, that are
            hidden from the estimator and whose residual is the loss (compare Yaman et al. 2020). Noise that the
            estimator has not seen cannot be fitted: the loss for noisy data. 0 is the paper's.
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
        held_out: float = 0.0,
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
        if not 0 <= held_out < 1:
            raise InputError(f"held_out of the adaptation is {held_out}; give a share of at least 0 and below 1")
        self.held_out = held_out
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

    def draw_slices(self) -> Tensor:
        """Indices of the K slices of a gradient step: random ones, without repetition."""
        return torch.randperm(len(self.measurement))[: self.slices]

    def split(self, measurement: Measurement) -> tuple[Measurement, Measurement]:
        """The measurement with a few of its lines hidden, and with only these."""
        lines = measurement.y.shape[-2]
        mask = torch.zeros(lines, 1, device=measurement.y.device)
        mask[torch.randperm(lines)[: max(1, round(self.held_out * lines))]] = 1
        return measurement.hide(1 - mask), measurement.hide(mask)

    @torch.enable_grad()
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> float | None:
        if not self.horizon <= t <= STEPS - self.horizon:
            return None
        for _ in range(self.steps):
            chosen = self.draw_slices()
            part = self.measurement[chosen]
            self.denoiser.weights = self.lora.merged(training=True)
            seen, hidden = self.split(part) if self.held_out else (part, part)
            estimate = estimator(self.denoiser, x_t[chosen], t, seen)
            loss = hidden.residual(estimate.mean).abs().square().sum() / len(chosen)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        with torch.no_grad():
            self.denoiser.weights = self.lora.merged()
        return loss.item()

    def finish(self) -> dict[str, Tensor]:
        self.denoiser.weights = {}
        weights = self.lora.state_dict()
        self.lora.remove()
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"lora": self.lora.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lora.load_state_dict(state["lora"])
        with torch.no_grad():
            self.denoiser.weights = self.lora.merged()
        self.optimizer.load_state_dict(state["optimizer"])
