"""The interface of all reconstruction methods."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from ddip_pl.adaptation.adaptation import OnGradientStep, ignore
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.loop import ReverseDiffusionLoop
from ddip_pl.reconstruction.memory import peak_memory
from ddip_pl.reconstruction.step import Process, Step, watched
from ddip_pl.results.result import Result
from ddip_pl.volumes.frame import Frame

LOGGED = ("psnr", "ssim", "residual", "discrepancy")


class Method(LightningModule, ABC):
    """A method to reconstruct a volume. It works with and without a Lightning Trainer (`test` and `predict`).

    A batch is one volume, `(measurement, frame)`. A subclass implements `begin`.

    Attributes:
        prior: file of the prior, or None for a method without one.
        image_size: height and width that the prior is trained for, or None.
        resumable: whether a run can be continued from a checkpoint.
        loop: drives the reconstruction in a Trainer.
    """

    prior: str | None = None
    image_size: int | None = None
    resumable: bool = True
    loop: ReverseDiffusionLoop

    @abstractmethod
    def begin(self, measurement: Measurement, on_gradient_step: OnGradientStep = ignore) -> Process:
        """Begin a reconstruction.

        Raises:
            InputError: the settings do not fit the measurement.
        """

    def reconstruct(
        self,
        measurement: Measurement,
        frame: Frame = Frame(),  # noqa: B008 (frozen)
        on_step: Callable[[int, int, Step], None] | None = None,
    ) -> Result:
        """Reconstruct a volume, without a Trainer.

        Args:
            measurement: of the volume.
            frame: position and name of the volume, for the result.
            on_step: called after each step with the number of steps done, their maximum number, and the step.

        Raises:
            InputError: the settings do not fit the measurement.
        """
        process = self.begin(measurement)
        trajectory: list[dict[str, float]] = []
        with torch.no_grad(), closing(watched(process.iterate(), measurement.y.device)) as steps:
            for step in steps:
                trajectory.append(dict(step.figures))
                if on_step is not None:
                    on_step(len(trajectory), process.steps, step)
        return self.result(process, step.images["estimate"], measurement, frame, trajectory)

    def result(
        self,
        process: Process,
        images: Tensor,
        measurement: Measurement,
        frame: Frame,
        trajectory: list[dict[str, float]],
    ) -> Result:
        """The result of a process; its images are set to 0 where nothing is measured."""
        visible = measurement.operator.visible(images)
        return Result(
            visible,
            measurement,
            trajectory,
            process.weights,
            frame,
            peak_memory(self.device),
            self.prior,
            prior_size=self.image_size,
        )

    def setup(self, stage: str) -> None:
        self.loop = ReverseDiffusionLoop(self.trainer, stage)

    def on_test_batch_start(self, *_: Any) -> None:
        """Reset random numbers and memory statistics, so that volumes do not influence each other."""
        torch.manual_seed(torch.initial_seed())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    on_predict_batch_start = on_test_batch_start  # type: ignore[assignment]

    def test_step(self, batch: tuple[Measurement, Frame], batch_idx: int) -> Result:  # type: ignore[override]
        """Reconstruct a volume; logs PSNR, SSIM, residual and discrepancy."""
        result = self._reconstruct(*batch)
        metrics = result.metrics()
        self.log_dict({name: metrics[name] for name in LOGGED if name in metrics}, batch_size=1)
        return result

    def predict_step(self, batch: tuple[Measurement, Frame], batch_idx: int) -> Result:  # type: ignore[override]
        """Reconstruct a volume, without its reference."""
        measurement, frame = batch
        return self._reconstruct(replace(measurement, reference=None), frame)

    def _reconstruct(self, measurement: Measurement, frame: Frame) -> Result:
        process = self.begin(measurement, self.loop.on_gradient_step)
        images = self.loop.run(process, measurement, frame.name)
        return self.result(process, images, measurement, frame, self.loop.trajectory)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the weights: the prior has its own file, so a checkpoint needs only the state of the loop."""
        checkpoint["state_dict"] = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.resumable:
            raise InputError(f"{type(self).__name__} cannot continue from a checkpoint; leave out --ckpt_path")
