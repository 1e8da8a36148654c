"""A reconstruction under way, whatever the method: one step after the other."""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.reconstruction.memory import peak_memory


class Step(NamedTuple):
    """A diffusion step, or an iteration of a baseline.

    Attributes:
        images: `(slices, channels, height, width)` with padding, by name: the `estimate` and, where there is a prior,
            its mean `x0_hat`.
        figures: of this step, by name: its timestep `t`, relative data `residual`, losses of the adaptation.
    """

    images: Mapping[str, Tensor]
    figures: Mapping[str, float]


class Process(Protocol):
    """A reconstruction under way. The last step's estimate is the result.

    Attributes:
        steps: number of steps, at most.
        weights: the adapted weights, once all steps are done.
    """

    steps: int
    weights: AdaptedWeights

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """Make the steps, from the beginning or from a saved state.

        Raises:
            InputError: the settings do not fit the measurement, or the state is that of another run.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, between any two of them."""


def timed(steps: Iterator[Step], device: torch.device) -> Generator[Step, None, None]:
    """The same steps, with what they cost among their figures: `seconds` and `peak_memory_bytes`."""
    clock = time.monotonic()
    for step in steps:
        cost = {"seconds": time.monotonic() - clock, "peak_memory_bytes": peak_memory(device)}
        yield step._replace(figures={**step.figures, **cost})
        clock = time.monotonic()
