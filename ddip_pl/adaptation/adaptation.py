"""Who is adapted to what, before each step of the reverse diffusion."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser

Figures = dict[str, float]


class Adaptation(ABC):
    """Changes the prior to fit the measurement, in the course of one volume.

    The loop calls `start`, then `adapt` for every timestep, and `finish` at the end. `state_dict` holds all that is
    needed to go on in another process.

    Attributes:
        slicewise: every slice gets weights of its own, so that there are none for the planes across the slices.
        trajectories: how often the reverse diffusion is gone through, from noise.
        on_gradient_step: called with the number of gradient steps done and to do, at most, at this timestep.
    """

    slicewise: ClassVar[bool] = False
    trajectories: ClassVar[int] = 1
    on_gradient_step: Callable[[int, int], None] = staticmethod(lambda done, steps: None)

    @abstractmethod
    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        """Make ready for a volume.

        Raises:
            InputError: the settings do not fit the volume.
        """

    @abstractmethod
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> Figures:
        """Adapt the denoiser at `x_t (slices, channels, height, width)`, for this and later steps.

        Returns:
            Figures of what was done, such as the loss before and after it; none if nothing was done at this timestep.
        """

    def next_trajectory(self) -> None:  # noqa: B027 (most have one only)
        """Make ready for another trajectory; called before the second one and later ones."""

    @abstractmethod
    def finish(self) -> dict[str, Tensor]:
        """Leave the prior as it was found; returns the adapted weights by name.

        Names of weights that belong to a slice have its number and a slash in front.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; called behind `start`."""
