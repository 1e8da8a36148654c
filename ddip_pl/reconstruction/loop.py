"""Reverse diffusion as a Lightning loop: Algorithm 2 of D3IP (Chung & Ye 2024), and every method composed like it.

Lightning keeps its loop classes behind an underscore. This is the only module that touches them.
"""

import math
import time
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.loops import _EvaluationLoop, _Loop, _PredictionLoop  # type: ignore[attr-defined]
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import Memory
from ddip_pl.evaluation.metrics import relative_residual
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.schedule import ddim_step, diffuse, slerp, timesteps, tweedie
from ddip_pl.reconstruction.callback import reconstruction_callbacks
from ddip_pl.reconstruction.memory import peak_memory


class ReverseDiffusionLoop(_Loop):
    """From noise to a volume, one diffusion step at a time; all that a step depends on is in its state.

    The parts come from the trainer's module: denoiser, estimator, adaptation, and the settings of the sampler.

    Attributes:
        x: `x_t` of all slices, `(slices, channels, height, width)`.
        step: number of diffusion steps done, of all trajectories.
        mean: running average of the posterior means.
        memory: what the estimator carries from one of them to the next.
        trajectory: one row of figures for each step.
        images: of the last step, see `ReconstructionCallback`.
        weights: adapted weights by name, when the volume is finished.
    """

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        self.x: Tensor | None = None
        self.step = 0
        self.mean: Tensor | None = None
        self.memory: Memory = {}
        self.trajectory: list[dict[str, float]] = []
        self.images: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.noise = torch.Generator()
        self._saved: dict[str, Any] | None = None

    def run(self, measurement: Measurement) -> Tensor:
        """Reconstruct all slices of a measurement, `(slices, channels, height, width)`."""
        self.module = cast(Any, self.trainer.lightning_module)
        self.timesteps = timesteps(self.module.start, self.module.steps, self.module.spacing)
        self.steps = len(self.timesteps) * self.module.adaptation.trajectories
        self.planes = self.module.planes_of(measurement)
        self.module.adaptation.on_gradient_step = self.on_gradient_step
        self.module.adaptation.start(self.module.denoiser, measurement)
        self.name, self.data = measurement.name, float(measurement.y.abs().sum())
        try:
            if self._saved is None or self.volume < self._saved["volume"]:
                self.noise.manual_seed(torch.initial_seed())
                self.step, self.trajectory = 0, []
            else:
                self.restore(self._saved, measurement)
                self._saved = None
            while self.step < self.steps:
                if self.step % len(self.timesteps) == 0:
                    self.initialise(measurement)
                self.advance(measurement)
                self.on_advance_end()
            assert self.x is not None
            return self.x
        finally:
            self.weights = self.module.adaptation.finish()
            self.x = self.mean = None
            self.memory, self.images = {}, {}

    @property
    def volume(self) -> int:
        """Number of the volume in the run."""
        loop = self.trainer.test_loop if self.trainer.testing else self.trainer.predict_loop
        return loop.batch_progress.current.ready - 1

    def initialise(self, measurement: Measurement) -> None:
        """Begin a trajectory: `x_T' = sqrt(abar) A^+ y + sqrt(1 - abar) slerp(e_1, e_N, i / N)`."""
        if self.step > 0:
            self.module.adaptation.next_trajectory()
        guess = measurement.operator.pseudo_inverse(measurement.y)
        abar = self.module.denoiser.abar_at(self.timesteps[0])
        if self.module.initial_noise == "interpolated":
            first, last = self.gaussian(2, *guess.shape[1:])
            noise = slerp(first, last, len(guess))
        else:
            noise = self.gaussian(*guess.shape)
        self.x = diffuse(guess, noise.to(guess), abar)
        self.mean, self.memory = None, {}

    def advance(self, measurement: Measurement) -> None:
        """One step of Algorithm 2: adapt the prior at `t`, then go from `x_t` to `x_{t-1}`."""
        denoiser, estimator, adaptation = self.module.denoiser, self.module.estimator, self.module.adaptation
        x = cast(Tensor, self.x)
        index = self.step % len(self.timesteps)
        t, t_next = self.timesteps[index], (*self.timesteps, None)[index + 1]
        clock = time.monotonic()

        figures = adaptation.adapt(estimator, x, t)
        with denoiser.across(self.planes[self.step % len(self.planes)]):
            mean, eps, self.memory = estimator(denoiser, x, t, measurement, self.memory)
        self.mean = mean if self.mean is None else mean.lerp(self.mean, self.module.averaging)
        noise = self.gaussian(*x.shape).to(x)
        self.x = ddim_step(self.mean, eps, noise, denoiser.abar_at(t_next), self.module.eta)

        self.step += 1
        self.images = {"x0_hat": tweedie(x, eps, denoiser.abar_at(t)), "estimate": self.mean}
        row = {"t": t, "residual": relative_residual(self.mean, measurement), **figures}
        cost = {"seconds": time.monotonic() - clock, "peak_memory_bytes": peak_memory(x.device)}
        self.trajectory.append(row | cost)

    def gaussian(self, *shape: int) -> Tensor:
        """Gaussian noise that depends on the seed only, whatever else draws random numbers (LoRA, say)."""
        return torch.randn(*shape, generator=self.noise)

    def on_advance_end(self) -> None:
        row = self.trajectory[-1]
        for callback in reconstruction_callbacks(self.trainer):
            callback.on_diffusion_step_end(self.trainer, self.step, self.steps, row, self.images)

    def on_gradient_step(self, step: int, steps: int) -> None:
        """Pass on what the adaptation tells."""
        for callback in reconstruction_callbacks(self.trainer):
            callback.on_gradient_step_end(self.trainer, step, steps)

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self.x is None:
            return {}
        return {
            "volume": self.volume,
            "name": self.name,
            "data": self.data,
            "x": self.x,
            "step": self.step,
            "timesteps": self.timesteps,
            "trajectory": self.trajectory,
            "mean": self.mean,
            "memory": self.memory,
            "noise": self.noise.get_state(),
            "random": torch.get_rng_state(),
            "adaptation": self.module.adaptation.state_dict(),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None

    def restore(self, state: dict[str, Any], measurement: Measurement) -> None:
        """Go on from a saved state, with the same random numbers that would have come.

        Raises:
            InputError: it is the state of another run.
        """
        if (state["name"], state["timesteps"], len(state["x"])) != (self.name, self.timesteps, len(measurement)):
            raise InputError(
                f"the checkpoint is of {state['name']}, {len(state['x'])} slices, {len(state['timesteps'])} steps from "
                f"{state['timesteps'][0]}; give --ckpt_path with the data and settings it was saved with"
            )
        if not math.isclose(state["data"], self.data, rel_tol=1e-4):
            raise InputError(f"the checkpoint is of another measurement of {self.name}; give --ckpt_path with its task")
        self.x = state["x"].to(measurement.y.device)
        self.step, self.trajectory = state["step"], state["trajectory"]
        self.mean = None if state["mean"] is None else state["mean"].to(self.x)
        self.memory = {name: value.to(self.x.device) for name, value in state["memory"].items()}
        self.module.adaptation.load_state_dict(state["adaptation"])
        self.noise.set_state(state["noise"])
        torch.set_rng_state(state["random"])


class _TestLoop(_EvaluationLoop):
    """Lightning's test loop with the reverse diffusion as its child, whose state is thereby checkpointed."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer, TrainerFn.TESTING, RunningStage.TESTING, verbose=False, inference_mode=False)
        self.reverse_diffusion = ReverseDiffusionLoop(trainer)


class _PredictLoop(_PredictionLoop):
    """Lightning's prediction loop with the reverse diffusion as its child."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer, inference_mode=False)
        self.reverse_diffusion = ReverseDiffusionLoop(trainer)


class ReconstructionTrainer(Trainer):
    """Lightning's Trainer, whose `test` and `predict` run the reverse diffusion.

    `save_checkpoint` in the middle of a volume and `ckpt_path` afterwards continue it. By default it logs nothing and
    leaves no files; `ddip_pl.callbacks` has what tells of the run and writes the volume.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        for name in ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"):
            kwargs.setdefault(name, False)
        super().__init__(*args, **kwargs)
        self.test_loop = _TestLoop(self)
        self.predict_loop = _PredictLoop(self)

    @property
    def reverse_diffusion(self) -> ReverseDiffusionLoop:
        """The loop of what is running: test or predict."""
        loop = cast(_TestLoop | _PredictLoop, self.test_loop if self.testing else self.predict_loop)
        return loop.reverse_diffusion
