"""A running reconstruction by any method: a sequence of steps."""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.reconstruction.memory import peak_memory


class Step(NamedTuple):
    """A diffusion step, or an iteration of a baseline.

    Attributes:
        images: `(slices, channels, height, width)`, padded, by name: the `estimate` and, if there is a prior, its mean
            `x0_hat`. None in a step that has no images of the whole volume, which is never the last one.
        figures: of this step, by name: such as timestep `t`, relative `residual`, and losses of the adaptation.
    """

    images: Mapping[str, Tensor]
    figures: Mapping[str, float]


class Process(Protocol):
    """A running reconstruction. The estimate of the last step is the result."""

    @property
    def steps(self) -> int:
        """Maximum number of steps; it may fall during the run."""

    @property
    def weights(self) -> AdaptedWeights:
        """The adapted weights, available at the end."""

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """Run the steps from the beginning or from a saved state.

        Raises:
            InputError: the settings do not fit the measurement, or the state belongs to another run.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on; may be called between any two steps."""


def watched(steps: Iterator[Step], device: torch.device) -> Generator[Step, None, None]:
    """The same steps, with their `seconds` and `peak_memory_bytes` added to the figures.

    Raises:
        InputError: the estimate has voxels that are NaN or infinite, or the device runs out of memory.
    """
    clock = time.monotonic()
    for done, step in enumerate(in_memory(steps), 1):
        if "estimate" in step.images and not step.images["estimate"].isfinite().all():
            raise InputError(
                f"the reconstruction has diverged: voxels are NaN or infinite after {done} steps; lower the learning "
                "rate of the adaptation, if there is one, and check the prior and the measurement"
            )
        cost = {"seconds": time.monotonic() - clock, "peak_memory_bytes": peak_memory(device)}
        yield step._replace(figures={**step.figures, **cost})
        clock = time.monotonic()


def in_memory(steps: Iterator[Step]) -> Iterator[Step]:
    """The same steps.

    Raises:
        InputError: the device runs out of memory.
    """
    try:
        yield from steps
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the device is out of memory; lower data.slices or data.size, if the prior adapts also "
            "model.adaptation.slices and model.batch_size, or add --trainer.accelerator cpu"
        ) from error
