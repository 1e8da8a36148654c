"""No adaptation: the prior as it was trained (DDS, DDNM, DiffusionMBIR)."""

from typing import Any

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class NoAdaptation(Adaptation):
    """Leaves the prior unchanged."""

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        self.denoiser = denoiser

    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        return Adapted(self.denoiser, {})

    def finish(self) -> AdaptedWeights:
        return AdaptedWeights()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
