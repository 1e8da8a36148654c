"""Who is adapted to what, before each step of the reverse diffusion."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class Adaptation(ABC):
    """Changes the prior to fit the measurement, in the course of one volume.

    The loop calls `start`, then `adapt` for every timestep, and `finish` at the end. `state_dict` holds all that is
    needed to go on in another process.
    """

    @abstractmethod
    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        """Make ready for a volume.

        Raises:
            InputError: the settings do not fit the volume.
        """

    @abstractmethod
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> float | None:
        """Adapt the denoiser at `x_t (slices, channels, height, width)`, for this and later steps.

        Returns:
            The last loss, or None if nothing was done at this timestep.
        """

    @abstractmethod
    def finish(self) -> dict[str, Tensor]:
        """Leave the prior as it was found; returns the adapted weights by name."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; called behind `start`."""
