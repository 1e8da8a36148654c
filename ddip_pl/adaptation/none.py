"""No adaptation: the prior as it was trained (DDS, DDNM, DiffusionMBIR)."""

from typing import Any

from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, Figures
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class NoAdaptation(Adaptation):
    """Leaves the prior alone."""

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        pass

    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> Figures:
        return {}

    def finish(self) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
