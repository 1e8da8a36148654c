"""The hooks that reconstruction adds to Lightning's."""

from lightning import Callback, Trainer

from ddip_pl.reconstruction.step import Step


class ReconstructionCallback(Callback):
    """A callback that hears of every diffusion step and of the gradient steps within."""

    def on_gradient_step_end(self, trainer: Trainer, done: int, steps: int) -> None:
        """Called after gradient step number `done` of at most `steps` at this timestep."""

    def on_diffusion_step_end(self, trainer: Trainer, done: int, steps: int, step: Step) -> None:
        """Called after diffusion step (iteration of a baseline) number `done` of at most `steps`.

        Args:
            trainer: see Lightning.
            done: steps done.
            steps: number of steps in all.
            step: its images, and its figures with `seconds` and `peak_memory_bytes`.
        """


def reconstruction_callbacks(trainer: Trainer) -> list[ReconstructionCallback]:
    """The trainer's callbacks that hear of diffusion steps."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ReconstructionCallback)]  # type: ignore[attr-defined]
