"""A method chosen by the data: the candidate that predicts hidden data best reconstructs the volume."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ddip_pl.adaptation.adaptation import OnGradientStep, ignore
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.physics.held_out import split
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.step import Process, Step
from ddip_pl.results.result import Result
from ddip_pl.settings import OpenUnitInterval, PositiveInt, Seed, checked
from ddip_pl.volumes.frame import Frame

log = logging.getLogger(__name__)


@checked
class BestOf(Method):
    """The best of several methods for a measurement, chosen by cross-validation (Stone 1974).

    In a trial, every candidate reconstructs a few central slices while a share of their readouts is hidden, the same
    for all (see `split`). The candidate whose images have the least discrepancy on the hidden data then reconstructs
    the whole volume from all data, with the same result as on its own. Candidates that cannot reconstruct the
    measurement are left out with a warning.

    Args:
        candidates: methods by name.
        slices: number of slices in a trial; all of them if slices are measured together.
        share: of the readouts to hide.
        seed: of the choice of readouts.

    Raises:
        InputError: there are no candidates, or a setting is out of range.
    """

    def __init__(
        self,
        candidates: dict[str, Method],
        slices: PositiveInt = 8,
        share: OpenUnitInterval = 0.1,
        seed: Seed = 0,
    ):
        super().__init__()
        if not candidates:
            raise InputError("model.candidates is empty; give at least one method")
        self.candidates, self.slices, self.share, self.seed = dict(candidates), slices, share, seed
        self.members = nn.ModuleList(candidates.values())  # moves with this module; no ModuleDict: names may have dots
        self.image_size = next((method.image_size for method in candidates.values() if method.image_size), None)
        self.strict_loading = False  # checkpoints have no weights, see Method.on_save_checkpoint

    def begin(self, measurement: Measurement, on_gradient_step: OnGradientStep = ignore) -> Trials:
        if not measurement.sigma_y > 0:
            raise InputError("data.sigma_y is 0, but candidates are compared in units of it; give the noise level")
        return Trials(self.candidates, measurement, *self.parts(measurement), on_gradient_step)

    def parts(self, measurement: Measurement) -> tuple[Measurement, Measurement]:
        """The kept and the hidden data of the slices in a trial, without their reference.

        Raises:
            InputError: nothing can be hidden.
        """
        sample = replace(measurement, reference=None)
        if measurement.operator.coupled == 1:
            first = max(0, len(measurement) - self.slices) // 2
            sample = sample[first : first + self.slices]
        return split(sample, self.share, self.seed)

    def result(
        self,
        process: Process,
        images: Tensor,
        measurement: Measurement,
        frame: Frame,
        trajectory: list[dict[str, float]],
    ) -> Result:
        """The result of the chosen method, with the discrepancies of all candidates."""
        assert isinstance(process, Trials), "the process of this method"
        result = super().result(process, images, measurement, frame, trajectory)
        chosen = self.candidates[process.chosen]
        return replace(result, prior=chosen.prior, prior_size=chosen.image_size, choice=process.choice)


class Trials:
    """The trials of all candidates, one after the other, and the run of the chosen one; a `Process`.

    Steps of a trial have no images, since those are of some slices only, and figures of their own: `trial`, the number
    of the candidate, and its `trial_residual`. Every run starts from the same random numbers.

    Args:
        candidates: methods by name.
        measurement: of the volume.
        kept: measurement of some slices, without the hidden data.
        hidden: the hidden data of these slices.
        on_gradient_step: called after every gradient step of an adaptation.

    Attributes:
        scores: discrepancy on the hidden data by name of the candidate, so far; nan for those left out.
        before: number of steps of the finished trials.
        done: number of steps of the running process.

    Raises:
        InputError: no candidate can reconstruct the measurement.
    """

    def __init__(
        self,
        candidates: Mapping[str, Method],
        measurement: Measurement,
        kept: Measurement,
        hidden: Measurement,
        on_gradient_step: OnGradientStep = ignore,
    ):
        self.candidates, self.measurement, self.hidden = candidates, measurement, hidden
        self.on_gradient_step = on_gradient_step
        self.scores: dict[str, float] = {}
        self.before = self.done = 0
        self.running: Process | None = None
        self.trials: dict[str, Process] = {}
        for name, candidate in candidates.items():
            try:
                self.trials[name] = candidate.begin(kept, on_gradient_step)
            except InputError as error:
                self.leave_out(name, error)
        self.check_choice()

    @property
    def choice(self) -> dict[str, float]:
        """Discrepancy on the hidden data by name, of all candidates that finished their trial."""
        return {name: score for name, score in self.scores.items() if not math.isnan(score)}

    @property
    def chosen(self) -> str:
        """Name of the candidate with the least discrepancy so far."""
        return min(self.choice, key=self.choice.__getitem__)

    @property
    def weights(self) -> AdaptedWeights:
        """The weights of the running process."""
        return AdaptedWeights() if self.running is None else self.running.weights

    @property
    def steps(self) -> int:
        """Maximum number of steps; it falls when a trial ends early."""
        waiting = [trial.steps for name, trial in self.trials.items() if name not in self.scores]
        last = self.trials.values() if waiting else [self.running or self.trials[self.chosen]]
        return self.before + sum(waiting) + max(process.steps for process in last)

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """Run the trials and the chosen candidate, from the beginning or from a saved state."""
        saved: Mapping[str, Any] = {}
        if state is not None:
            self.scores, self.before, self.done = dict(state["scores"]), state["before"], state["done"]
            saved = state["process"]
        for name in [name for name in self.trials if name not in self.scores]:
            try:
                yield from self.trial(name, saved)
            except InputError as error:
                self.leave_out(name, error)
            saved = {}
        self.check_choice()
        torch.manual_seed(torch.initial_seed())
        process = self.candidates[self.chosen].begin(self.measurement, self.on_gradient_step)
        for step, new in self.run(process, saved):
            if new:
                yield step
        if not new:  # the state was saved after the last step of a run that ended early
            yield step

    def trial(self, name: str, saved: Mapping[str, Any]) -> Iterator[Step]:
        """Run a candidate on the kept data and keep its score."""
        torch.manual_seed(torch.initial_seed())
        process, number = self.trials[name], [*self.candidates].index(name) + 1
        for step, new in self.run(process, saved):
            images = step.images["estimate"]
            if self.done == process.steps:  # a state saved after this step is that of a finished trial
                self.finish(name, images)
            if new:
                residual = {f"trial_{name}": value for name, value in step.figures.items() if name == "residual"}
                yield Step({}, {"trial": number} | residual)
        if name not in self.scores:  # it ended early
            self.finish(name, images)

    def run(self, process: Process, saved: Mapping[str, Any]) -> Iterator[tuple[Step, bool]]:
        """The steps of a process, and whether each is new.

        The process goes on from its saved state. If it has none, it runs again from the beginning, and its first steps
        are not new.
        """
        self.running = process
        first = self.done + 1 if saved else 1
        for number, step in enumerate(process.iterate(saved or None), first):
            new = number > self.done
            self.done = max(number, self.done)
            yield step, new

    def finish(self, name: str, images: Tensor) -> None:
        """End a trial with these images."""
        score = self.hidden.discrepancy(images)
        if math.isfinite(score):
            self.scores[name] = score
        else:
            self.leave_out(name, "its images are not finite")
        self.end()

    def leave_out(self, name: str, reason: object) -> None:
        """End a trial without a score."""
        log.warning("%s is left out: %s", name, reason)
        self.scores[name] = math.nan
        self.end()

    def end(self) -> None:
        """Count the steps of a trial that has ended."""
        self.before, self.done, self.running = self.before + self.done, 0, None

    def check_choice(self) -> None:
        """Check that there is a candidate left.

        Raises:
            InputError: there is none.
        """
        if len(self.scores) == len(self.candidates) and not self.choice:
            raise InputError(f"none of {', '.join(self.candidates)} can reconstruct the measurement; see the warnings")

    def state_dict(self) -> dict[str, Any]:
        """The scores so far and the state of the running process; a process without a state is run again."""
        running = {} if self.running is None else self.running.state_dict()
        return {"scores": dict(self.scores), "before": self.before, "done": self.done, "process": running}
