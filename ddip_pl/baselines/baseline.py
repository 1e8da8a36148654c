"""What the baselines share: they go from one iteration to the next, and are told about like any other method."""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import relative_residual
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.callback import reconstruction_callbacks
from ddip_pl.reconstruction.memory import peak_memory
from ddip_pl.reconstruction.module import Method, Result

log = logging.getLogger(__name__)

Step = tuple[Tensor, dict[str, float]]


class Baseline(Method):
    """A method without a learnt prior; it takes images of any size and any number of channels.

    Args:
        iterations: at most.

    Raises:
        InputError: there are none.
    """

    def __init__(self, iterations: int):
        super().__init__()
        if iterations < 1:
            raise InputError(f"model.iterations is {iterations}; give at least 1")
        self.iterations = iterations

    @abstractmethod
    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        """The images `(slices, channels, height, width)` after each iteration, and its figures; ends when it is done.

        Raises:
            InputError: the settings do not fit the measurement.
        """

    def test_step(self, measurement: Measurement, batch_idx: int) -> Result:  # type: ignore[override]
        trajectory: list[dict[str, float]] = []
        clock = time.monotonic()
        for images, figures in self.iterate(measurement):
            cost = {"seconds": time.monotonic() - clock, "peak_memory_bytes": peak_memory(self.device)}
            trajectory.append({"residual": relative_residual(images, measurement), **figures, **cost})
            for callback in reconstruction_callbacks(self.trainer):
                callback.on_diffusion_step_end(
                    self.trainer, len(trajectory), self.iterations, trajectory[-1], {"estimate": images}
                )
            clock = time.monotonic()
        return Result(measurement, images, trajectory, {}, peak_memory(self.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> NoReturn:
        raise InputError(f"{type(self).__name__} cannot go on from a checkpoint; leave out --ckpt_path")


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


def warn_unless_converged(change: float, tolerance: float, iterations: int) -> None:
    """Say it if the iteration ended before it had converged."""
    if not change < tolerance:
        log.warning(
            "not converged after %d iterations (%.1e, tolerance %.0e); raise model.iterations",
            iterations, change, tolerance,
        )  # fmt: skip
