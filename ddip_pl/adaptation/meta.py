"""D3IP meta: Reptile (Nichol et al. 2018) over the volume, then DDIP from its weights (Chung & Ye 2024)."""

from typing import Any, Literal

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.lora import LoraWeights
from ddip_pl.adaptation.slicewise import SlicewiseAdaptation, refuse_coupled
from ddip_pl.adaptation.volume import VolumeAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class MetaAdaptation(Adaptation):
    """Two trajectories: the first learns `theta_vol` for the volume, the second starts from it in every slice.

    In the first, the gradient steps of a timestep lead from `theta` to `theta'`, and Reptile goes part of the way:
    `theta <- theta + alpha (theta' - theta)`. `alpha` decreases linearly in `t`, from 1 at the first timestep to 0.5 at
    `t = 0`.

    Args:
        volume: the adaptation inside Reptile.
        slices: the adaptation of the second trajectory; starts from `theta_vol`.

    Raises:
        InputError: the two do not fit together.
    """

    trajectories = 2

    def __init__(self, volume: VolumeAdaptation | None = None, slices: SlicewiseAdaptation | None = None):
        self.volume, self.slices = volume or VolumeAdaptation(), slices or SlicewiseAdaptation()
        first, second = self.volume.training, self.slices.training
        if (first.rank, first.bias) != (second.rank, second.bias):
            raise InputError(
                f"LoRA rank and bias are {first.rank}, {first.bias} for the volume and {second.rank}, {second.bias} "
                "for the slices; give the same, because the slices start from the volume's weights"
            )
        if self.slices.initial is not None:
            raise InputError("slices.start_from: the slices start from the volume's weights; give volume.start_from")

    @property
    def images_at_once(self) -> int:
        return self.volume.images_at_once

    def check(self, planes: Literal["slices", "all"]) -> None:
        self.slices.check(planes)

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        refuse_coupled(measurement)
        self.denoiser, self.measurement = denoiser, measurement
        self.first: int | None = None
        self.active: VolumeAdaptation | SlicewiseAdaptation = self.volume
        self.volume.start(denoiser, measurement)

    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        if self.active is self.slices:
            return self.slices.adapt(estimator, x_t, t, on_gradient_step)
        volume = self.volume
        self.first = t if self.first is None else self.first
        alpha = 0.5 + 0.5 * t / max(self.first, 1)
        latest, average = volume.latest, volume.average
        adapted = volume.adapt(estimator, x_t, t, on_gradient_step)
        if adapted.figures:
            volume.latest = {name: old.lerp(volume.latest[name], alpha) for name, old in latest.items()}
            volume.average = {name: old.lerp(volume.average[name], alpha) for name, old in average.items()}
            volume.use_average()
        return Adapted(volume.adapted, adapted.figures)

    def next_trajectory(self, volume: Tensor) -> None:
        self.begin_slices()

    def begin_slices(self) -> None:
        """Begin the second trajectory, from the weights of the first."""
        weights = self.volume.finish()
        self.active = self.slices
        self.slices.start_from(self.denoiser, self.measurement, weights)

    def finish(self) -> LoraWeights:
        return self.active.finish()

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "slices": self.active is self.slices, "active": self.active.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state["first"]
        if state["slices"]:
            self.begin_slices()
        self.active.load_state_dict(state["active"])
