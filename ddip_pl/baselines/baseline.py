"""What the baselines share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ddip_pl.adaptation.adaptation import OnGradientStep, ignore
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.step import Step

log = logging.getLogger(__name__)


class Baseline(Method):
    """A method without a learnt prior; it takes images of any size and any number of channels.

    Args:
        iterations: at most.

    Raises:
        InputError: there are none.
    """

    resumable = False

    def __init__(self, iterations: int):
        super().__init__()
        if iterations < 1:
            raise InputError(f"model.iterations is {iterations}; give at least 1")
        self.iterations = iterations

    @abstractmethod
    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        """The `estimate` after each iteration, and its figures; ends when it is done.

        Raises:
            InputError: the settings do not fit the measurement.
        """

    def begin(self, measurement: Measurement, on_gradient_step: OnGradientStep = ignore) -> BaselineProcess:
        return BaselineProcess(self, measurement)

    def until_converged(
        self, measurement: Measurement, iterates: Iterable[tuple[Tensor, float]], tolerance: float
    ) -> Iterator[Step]:
        """Steps of a solver that yields images and their relative change, and a warning if it has not converged."""
        for images, change in iterates:
            yield step(images, measurement, change=change)
        if not change < tolerance:
            log.warning(
                "not converged after %d iterations (%.1e, tolerance %.0e); raise model.iterations",
                self.iterations, change, tolerance,
            )  # fmt: skip


class BaselineProcess:
    """A baseline at work on a measurement; a `Process` that always starts from the beginning."""

    weights = AdaptedWeights()

    def __init__(self, method: Baseline, measurement: Measurement):
        self.method, self.measurement, self.steps = method, measurement, method.iterations

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        return self.method.iterate(self.measurement)

    def state_dict(self) -> dict[str, Any]:
        return {}


def step(images: Tensor, measurement: Measurement, **figures: float) -> Step:
    """The step that ends with these images."""
    return Step({"estimate": images}, {"residual": measurement.relative_residual(images), **figures})


def absolute(strength: float, measurement: Measurement) -> float:
    """A strength of regularisation that was given in units of the noise.

    Raises:
        InputError: it is not positive, or there is no noise to measure it by.
    """
    if not strength > 0:
        raise InputError(f"model.strength is {strength}; give a positive number, in units of data.sigma_y")
    if not measurement.sigma_y > 0:
        raise InputError("data.sigma_y is 0, and the strength is in units of it; give the noise level of the data")
    return strength * measurement.sigma_y
