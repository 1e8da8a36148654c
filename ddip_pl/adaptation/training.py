"""How LoRA weights are trained, and what the adaptations that train them have in common."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Figures
from ddip_pl.adaptation.lora import LoRA, LoraWeights, Weights
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import STEPS


@dataclass(frozen=True)
class LoraTraining:
    """AdamW on LoRA weights, for `|| y_i - A D_theta(x_t^i | y_i) ||^2`.

    Args:
        steps: L, gradient steps at each timestep.
        learning_rate: of AdamW.
        ema: share of the earlier weights in their running average over gradient steps, which sampling uses; 0 samples
            with the latest weights.
        discrepancy: gradient steps end, until the next timestep, where the loss is at most that of noise,
            `(discrepancy sigma_y)^2` a measured value (Morozov's principle): the rest would be fitted to the noise.
            0 makes all the steps, as published.
        horizon: zeta; the prior is adapted for zeta <= t <= T - zeta only (constrained horizon).
        rank: of the LoRA weights.
        bias: train biases too.
        loss_estimator: `D_theta` in the loss; by default the one of sampling.
        start_from: folder of LoRA weights to start from, in PEFT's format; by default the prior as it was trained.

    Raises:
        InputError: a setting is out of its range.
    """

    steps: int = 5
    learning_rate: float = 1e-3
    ema: float = 0.9
    discrepancy: float = 1.0
    horizon: int = 5
    rank: int = 4
    bias: bool = True
    loss_estimator: PosteriorMean | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("learning_rate", self.learning_rate), ("rank", self.rank)):
            if not value > 0:
                raise InputError(f"{name} of the adaptation is {value}; give a positive number")
        if not 0 <= self.horizon < STEPS / 2:
            raise InputError(
                f"horizon of the adaptation is {self.horizon}; give 0 .. {STEPS // 2 - 1}, or nothing is adapted"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"ema of the adaptation is {self.ema}; give a share of at least 0 and below 1")
        if not self.discrepancy >= 0:
            raise InputError(f"discrepancy of the adaptation is {self.discrepancy}; give 0 or more")

    @classmethod
    def published(cls) -> "LoraTraining":
        """The settings of the paper."""
        return cls(steps=10, ema=0.0, discrepancy=0.0, horizon=40)

    def initial(self) -> LoraWeights | None:
        """The weights to start from.

        Raises:
            InputError: their files cannot be read.
        """
        return None if self.start_from is None else LoraWeights.load(Path(self.start_from))

    def within_horizon(self, t: int) -> bool:
        """Whether the prior is adapted at timestep `t`."""
        return self.horizon <= t <= STEPS - self.horizon


class LoraAdaptation(Adaptation):
    """An adaptation whose weights are LoRA's.

    Args:
        training: how they are trained.

    Attributes:
        initial: the weights to start from, if they are not the prior's.
    """

    def __init__(self, training: LoraTraining):
        self.training = training
        self.initial = training.initial()

    def begin(self, denoiser: Denoiser, measurement: Measurement, lora: LoRA) -> None:
        """Keep what every step needs."""
        self.denoiser, self.measurement, self.lora = denoiser, measurement, lora

    def load(self, lora: LoRA, weights: Weights) -> None:
        """Start from given weights.

        Raises:
            InputError: they do not fit; the network is left as it was found.
        """
        try:
            lora.load_state_dict(weights)
        except InputError:
            lora.remove()
            raise

    def losses(
        self, estimator: PosteriorMean, denoiser: Denoiser, x_t: Tensor, t: int, part: Measurement
    ) -> tuple[Tensor, Tensor]:
        """`|| y_i - A D_theta(x_t^i | y_i) ||^2`, and the losses at which gradient steps end.

        Args:
            estimator: of sampling.
            denoiser: with the weights that are trained.
            x_t: of the chosen slices only.
            t: timestep.
            part: the measurement of these slices.

        Returns:
            One of both for each slice, or for all of them if they are coupled.
        """
        mean = (self.training.loss_estimator or estimator)(denoiser, x_t, t, part).mean
        # One per cent above the level at which DDS ends.
        return part.misfit(mean), 1.01 * part.noise_energy(self.training.discrepancy)

    def figures(self, first: Tensor, last: Tensor, weights: Weights) -> Figures:
        """Mean loss of the chosen slices at the first and the last gradient step, and how far the weights have come."""
        return {
            "loss_before": first.mean().item(),
            "loss_after": last.mean().item(),
            "lora_norm": self.lora.update_norm(weights),
        }
