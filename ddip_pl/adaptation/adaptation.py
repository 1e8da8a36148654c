"""Who is adapted to what, before each step of the reverse diffusion."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser

Figures = dict[str, float]
OnGradientStep = Callable[[int, int], None]  # gradient steps done, and to do at most, at this timestep


def ignore(done: int, steps: int) -> None:
    """An `OnGradientStep` that does nothing."""


class Adapted(NamedTuple):
    """What an adaptation makes of a timestep.

    Attributes:
        denoiser: the prior as it is now, to sample with.
        figures: of what was done, such as the loss before and after; none if nothing was done at this timestep.
    """

    denoiser: Denoiser
    figures: Figures


class Adaptation(ABC):
    """Changes the prior to fit the measurement, in the course of one volume.

    The sampler calls `start`, then `adapt` for every timestep, and `finish` at the end. `state_dict` holds everything
    that is needed to go on in another process.

    Attributes:
        trajectories: how often the reverse diffusion runs from noise to image.
    """

    trajectories: ClassVar[int] = 1

    def check(self, planes: Literal["slices", "all"]) -> None:  # noqa: B027 (most can do either)
        """Refuse what this adaptation cannot do, before anything runs.

        Args:
            planes: those that the prior will denoise, see `Sampler`.

        Raises:
            InputError: they do not go together.
        """

    @abstractmethod
    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        """Prepare for a volume.

        Raises:
            InputError: the settings do not fit the volume.
        """

    @abstractmethod
    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        """Adapt the prior at `x_t (slices, channels, height, width)`, for this timestep and later ones."""

    def next_trajectory(self) -> None:  # noqa: B027 (most have only one)
        """Prepare for another trajectory; called before the second one and later ones."""

    @abstractmethod
    def finish(self) -> AdaptedWeights:
        """Leave the network as it was found; returns the adapted weights."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; called after `start`."""
