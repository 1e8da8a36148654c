"""The interface of adaptations: they fit the prior to the measurement before each diffusion step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser

Figures = dict[str, float]
OnGradientStep = Callable[[int, int], None]  # gradient steps done, and their maximum number, at this timestep


def ignore(done: int, steps: int) -> None:
    """An `OnGradientStep` that does nothing."""


class Adapted(NamedTuple):
    """The result of an adaptation at one timestep.

    Attributes:
        denoiser: the adapted prior, to sample with.
        figures: such as the loss before and after; empty at timesteps without adaptation.
    """

    denoiser: Denoiser
    figures: Figures


class Adaptation(ABC):
    """Fits the prior to the measurement of one volume during reverse diffusion.

    The sampler calls `start`, then `adapt` for every timestep, and `finish` at the end. `state_dict` holds everything
    needed to continue in another process.

    Attributes:
        trajectories: number of times the reverse diffusion runs from noise to image.
        trained_on: hash of the prior whose adapted weights it starts from; empty if there are none, or it is unknown.
    """

    trajectories: ClassVar[int] = 1
    trained_on: str = ""

    @property
    def images_at_once(self) -> int:
        """Images that a gradient step needs in memory at once, as far as they cannot be split into batches."""
        return 0

    def check(self, planes: Literal["slices", "all"]) -> None:  # noqa: B027 (most support both)
        """Check the sampler's settings before anything runs.

        Args:
            planes: the planes that the prior denoises, see `Sampler`.

        Raises:
            InputError: the adaptation does not support them.
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
        """Adapt the prior at `x_t (slices, channels, height, width)`, for this and later timesteps."""

    def next_trajectory(self, volume: Tensor) -> None:  # noqa: B027 (most have only one)
        """Prepare for the next trajectory; called before the second and each later one.

        Args:
            volume: result of the one before, `(slices, channels, height, width)`.
        """

    def data(self, measurement: Measurement, trajectory: int) -> Measurement:
        """The part of the measurement that a trajectory (0, 1, ...) reconstructs from; by default all of it."""
        return measurement

    @abstractmethod
    def finish(self) -> AdaptedWeights:
        """Restore the network; returns the adapted weights."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; called after `start`."""
