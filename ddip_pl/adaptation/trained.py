"""What adaptations with trained LoRA weights have in common."""

from pathlib import Path

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Figures
from ddip_pl.adaptation.lora import LoRA, Weights, load
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import STEPS


class TrainedAdaptation(Adaptation):
    """AdamW on LoRA weights, for `|| y_i - A D_theta(x_t^i | y_i) ||^2`.

    Args:
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
        loss_estimator: `D_theta` in the loss; by default the one of sampling.
        start_from: folder of LoRA weights to start from, in PEFT's format; by default the prior as it was trained.
    """

    def __init__(
        self,
        steps: int = 10,
        learning_rate: float = 1e-3,
        ema: float = 0.0,
        discrepancy: float = 0.0,
        horizon: int = 40,
        rank: int = 4,
        bias: bool = True,
        loss_estimator: PosteriorMean | None = None,
        start_from: str | None = None,
    ):
        for name, value in (("steps", steps), ("learning_rate", learning_rate)):
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
        self.steps, self.learning_rate, self.horizon = steps, learning_rate, horizon
        self.ema, self.discrepancy = ema, discrepancy
        self.rank, self.bias = rank, bias
        self.loss_estimator = loss_estimator
        self.initial: list[Weights] = [] if start_from is None else load(Path(start_from))

    def begin(self, denoiser: Denoiser, measurement: Measurement, lora: LoRA) -> None:
        """Keep what every step needs; raises `InputError` if the weights to start from do not fit."""
        self.denoiser, self.measurement, self.lora = denoiser, measurement, lora
        try:
            for weights in self.initial:
                lora.load_state_dict(weights)
        except InputError:
            lora.remove()
            raise

    def within_horizon(self, t: int) -> bool:
        """Whether the prior is adapted at timestep `t`."""
        return self.horizon <= t <= STEPS - self.horizon

    def losses(self, estimator: PosteriorMean, x_t: Tensor, t: int, chosen: Tensor) -> Tensor:
        """`|| y_i - A D_theta(x_t^i | y_i) ||^2` for each of the chosen slices, or of all if they are coupled."""
        part = self.measurement[chosen]
        estimate = (self.loss_estimator or estimator)(self.denoiser, x_t[chosen], t, part)
        return part.residual(estimate.mean).abs().square().flatten(1).sum(1)

    def figures(self, first: Tensor, last: Tensor, weights: Weights) -> Figures:
        """Mean loss of the chosen slices at the first and the last gradient step, and how far the weights have come."""
        return {
            "loss_before": first.mean().item(),
            "loss_after": last.mean().item(),
            "lora_norm": self.lora.update_norm(weights),
        }

    def enough(self, chosen: Tensor) -> Tensor:
        """Losses of the chosen slices at which gradient steps end, one per cent above the level at which DDS does."""
        energy = 1.01 * self.measurement.noise_energy(self.discrepancy)
        return energy if self.measurement.operator.coupled > 1 else energy[chosen]
