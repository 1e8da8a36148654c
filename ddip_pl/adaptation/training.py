"""The training of LoRA weights, and what all adaptations based on it share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Figures
from ddip_pl.adaptation.guard import DIVERGENCES
from ddip_pl.adaptation.lora import LoRA, LoraWeights, Weights
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import STEPS
from ddip_pl.settings import HalfOpenUnitInterval, LearningRate, NonNegative, PositiveInt, Range, checked


@checked
@dataclass(frozen=True)
class LoraTraining:
    """AdamW on LoRA weights, for `|| y_i - A D_theta(x_t^i | y_i) ||^2`.

    Args:
        steps: L, gradient steps at each timestep.
        learning_rate: of AdamW.
        ema: share of the earlier weights in the running average over gradient steps, which sampling uses; 0 samples
            with the latest weights.
        discrepancy: skip the timestep's remaining gradient steps once the loss is at noise level,
            `(discrepancy sigma_y)^2` per measured value (Morozov's principle), because more would fit the noise. 0 does
            all the steps, as in the paper.
        horizon: zeta; the prior is adapted only for zeta <= t <= T - zeta (constrained horizon).
        rank: of the LoRA weights.
        bias: train biases too.
        loss_estimator: `D_theta` in the loss; by default the sampling estimator.
        start_from: folder of LoRA weights to start from, in PEFT's format; by default training starts from the prior.

    Raises:
        InputError: a setting is out of range.
    """

    steps: PositiveInt = 5
    learning_rate: LearningRate = 1e-3
    ema: HalfOpenUnitInterval = 0.9
    discrepancy: NonNegative = 1.0
    horizon: Annotated[int, Range(0, STEPS // 2 - 1)] = 5
    rank: Annotated[int, Range(1, 1024)] = 4
    bias: bool = True
    loss_estimator: PosteriorMean | None = None
    start_from: str | None = None

    @classmethod
    def published(cls) -> "LoraTraining":
        """The settings of the paper."""
        return cls(steps=10, ema=0.0, discrepancy=0.0, horizon=40)

    def initial(self) -> LoraWeights | None:
        """The weights to start from.

        Raises:
            InputError: the files cannot be read.
        """
        return None if self.start_from is None else LoraWeights.load(Path(self.start_from))

    def within_horizon(self, t: int) -> bool:
        """Whether the prior is adapted at timestep `t`."""
        return self.horizon <= t <= STEPS - self.horizon


class LoraAdaptation(Adaptation):
    """An adaptation that trains LoRA weights.

    Args:
        training: its settings.

    Attributes:
        initial: the weights to start from, or None to start from the prior.
    """

    def __init__(self, training: LoraTraining):
        self.training = training
        self.initial = training.initial()
        self.trained_on = self.initial.trained_on if self.initial is not None else ""

    def begin(self, denoiser: Denoiser, measurement: Measurement, lora: LoRA) -> None:
        """Keep the arguments for `adapt`."""
        self.denoiser, self.measurement, self.lora = denoiser, measurement, lora

    def load(self, lora: LoRA, weights: Weights) -> None:
        """Start from given weights.

        Raises:
            InputError: the weights do not fit; the network is restored first.
        """
        try:
            lora.load_state_dict(weights)
        except InputError:
            lora.remove()
            raise

    def losses(
        self, estimator: PosteriorMean, denoiser: Denoiser, x_t: Tensor, t: int, part: Measurement
    ) -> tuple[Tensor, Tensor]:
        """`|| y_i - A D_theta(x_t^i | y_i) ||^2`, and the noise level at which gradient steps end.

        Args:
            estimator: the sampling estimator.
            denoiser: computes with the weights in training.
            x_t: of the chosen slices.
            t: timestep.
            part: measurement of the chosen slices.

        Returns:
            Losses and noise levels, one each per slice, or one each for all slices if they are coupled.
        """
        mean = (self.training.loss_estimator or estimator)(denoiser, x_t, t, part).mean
        # One per cent above the level at which DiffusionMBIR ends.
        return part.misfit(mean), 1.01 * part.noise_energy(self.training.discrepancy)

    def figures(self, first: Tensor, last: Tensor, weights: Weights, divergences: int) -> Figures:
        """Mean loss of the chosen slices in the first and last gradient step, and the size of the weights' update.

        If gradient steps were undone because their losses ran away, also how often, as `divergences`.
        """
        figures = {
            "loss_before": first.mean().item(),
            "loss_after": last.mean().item(),
            "lora_norm": self.lora.update_norm(weights),
        }
        return figures | ({DIVERGENCES: divergences} if divergences else {})
