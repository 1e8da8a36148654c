"""The base class of the baselines."""

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
from ddip_pl.reconstruction.preflight import require, volumes_of
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import PositiveInt, checked

log = logging.getLogger(__name__)


@checked
class Baseline(Method):
    """A method without a learned prior, for images of any size and number of channels.

    Args:
        iterations: maximum number.

    Raises:
        InputError: the number is below 1.
    """

    resumable = False
    copies = 6  # of the volume in memory at once, see tests/reconstruction/test_preflight.py

    def __init__(self, iterations: PositiveInt):
        super().__init__()
        self.iterations = iterations

    @abstractmethod
    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        """Yield the `estimate` and its figures after each iteration.

        Raises:
            InputError: the settings do not fit the measurement.
        """

    def begin(self, measurement: Measurement, on_gradient_step: OnGradientStep = ignore) -> BaselineProcess:
        needed = volumes_of(measurement, self.copies)
        require(needed, needed, measurement)
        return BaselineProcess(self, measurement)

    def until_converged(
        self, measurement: Measurement, iterates: Iterable[tuple[Tensor, float]], tolerance: float
    ) -> Iterator[Step]:
        """Steps of a solver that yields images and their relative change or residual; warns if it does not converge."""
        for images, change in iterates:
            yield step(images, measurement, change=change)
        if not change < tolerance:
            log.warning(
                "not converged after %d iterations (%.1e, tolerance %.0e); raise model.iterations",
                self.iterations, change, tolerance,
            )  # fmt: skip


class BaselineProcess:
    """A baseline running on a measurement; a `Process` that cannot be resumed."""

    weights = AdaptedWeights()

    def __init__(self, method: Baseline, measurement: Measurement):
        self.method, self.measurement, self.steps = method, measurement, method.iterations

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        return self.method.iterate(self.measurement)

    def state_dict(self) -> dict[str, Any]:
        return {}


def step(images: Tensor, measurement: Measurement, **figures: float) -> Step:
    """The step that results in these images."""
    return Step({"estimate": images}, {"residual": measurement.relative_residual(images), **figures})


def absolute(strength: float, measurement: Measurement) -> float:
    """Convert a regularisation strength from units of the noise level to its absolute value.

    Raises:
        InputError: the noise level is 0.
    """
    if not measurement.sigma_y > 0:
        raise InputError("data.sigma_y is 0, but the strength is in units of it; give the noise level of the data")
    return strength * measurement.sigma_y
