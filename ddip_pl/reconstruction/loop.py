"""The Lightning loop that drives a reconstruction: timing, callbacks, checkpoints.

Lightning's loop classes are private. This is the only module that uses them.
"""

from contextlib import closing
from typing import Any

from lightning import Trainer
from lightning.pytorch.loops import _Loop  # type: ignore[attr-defined]
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.callback import reconstruction_callbacks
from ddip_pl.reconstruction.step import Process, Step, watched


class ReverseDiffusionLoop(_Loop):
    """Runs the steps of a reconstruction, calls the callbacks, and saves its state between steps.

    It becomes a child of the trainer's test or predict loop, so that the trainer's checkpoints contain its state.

    Args:
        trainer: any Lightning Trainer.
        stage: "test" or "predict".

    Attributes:
        trajectory: figures of the steps done, one row per step.
        step: number of steps done.
    """

    def __init__(self, trainer: Trainer, stage: str):
        super().__init__(trainer)
        self.stage = stage
        self.parent.inference_mode = False  # adaptations take gradients
        self.parent.reverse_diffusion = self  # makes this loop's state part of a checkpoint
        self.trajectory: list[dict[str, float]] = []
        self._current: tuple[Process, str, str] | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def parent(self) -> Any:
        """The trainer's loop over volumes; as an attribute, Lightning would treat it as a child of this loop."""
        return self.trainer.test_loop if self.stage == "test" else self.trainer.predict_loop

    @property
    def step(self) -> int:
        return len(self.trajectory)

    def run(self, process: Process, measurement: Measurement, name: str) -> Tensor:
        """Reconstruct the volume `name`; returns `(slices, channels, height, width)`."""
        self._current = process, name, measurement.digest
        try:
            state, self.trajectory = self._resume(), []
            if state is not None:
                self.trajectory = state["trajectory"]
            with closing(watched(process.iterate(state and state["process"]), measurement.y.device)) as steps:
                for step in steps:
                    self.trajectory.append(dict(step.figures))
                    self._tell(process.steps, step)
            return step.images["estimate"]
        finally:
            self._current = None

    def _tell(self, steps: int, step: Step) -> None:
        for callback in reconstruction_callbacks(self.trainer):
            callback.on_diffusion_step_end(self.trainer, self.step, steps, step)

    def on_gradient_step(self, done: int, steps: int) -> None:
        """Call the callbacks after a gradient step."""
        for callback in reconstruction_callbacks(self.trainer):
            callback.on_gradient_step_end(self.trainer, done, steps)

    @property
    def volume(self) -> int:
        """Index of the volume in the run."""
        return self.parent.batch_progress.current.ready - 1

    @property
    def volumes(self) -> int:
        """Number of volumes in the run."""
        return sum(self.parent.max_batches)

    def _resume(self) -> dict[str, Any] | None:
        """The saved state, if it belongs to this volume."""
        assert self._current is not None
        _, name, data = self._current
        if self._saved is None:
            return None
        if self._saved["name"] != name:
            if self.volume == self.volumes - 1:
                raise InputError(
                    f"the checkpoint is of {self._saved['name']}, the data are of {name}; give the data of the "
                    "checkpoint"
                )
            return None
        state, self._saved = self._saved, None
        if state["data"] != data:
            raise InputError(f"the checkpoint is of another measurement of {name}; give the data of the checkpoint")
        return state

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self._current is None:
            return {}
        process, name, data = self._current
        about = {"name": name, "data": data, "trajectory": self.trajectory}
        return about | {"process": process.state_dict()}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None
