"""The callback hooks that reconstruction adds to Lightning's."""

from lightning import Callback, Trainer

from ddip_pl.reconstruction.step import Step


class ReconstructionCallback(Callback):
    """A callback with hooks for diffusion steps and for the gradient steps of the adaptation."""

    def on_gradient_step_end(self, trainer: Trainer, done: int, steps: int) -> None:
        """Called after gradient step `done` of at most `steps` at this timestep."""

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, step: Step) -> None:
        """Called after diffusion step (or iteration of a baseline) `done` of at most `steps`.

        Args:
            trainer: the Lightning Trainer.
            done: number of steps done.
            steps: maximum number of steps.
            step: images and figures of the step, including `seconds` and `peak_memory_bytes`.
        """


def reconstruction_callbacks(trainer: Trainer) -> list[ReconstructionCallback]:
    """The trainer's callbacks that have these hooks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ReconstructionCallback)]  # type: ignore[attr-defined]
