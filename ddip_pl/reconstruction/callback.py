"""The hooks that reconstruction adds to Lightning's."""

from collections.abc import Mapping

from lightning import Callback, Trainer
from torch import Tensor


class ReconstructionCallback(Callback):
    """A callback that hears of every diffusion step and of the gradient steps within."""

    def on_gradient_step_end(self, trainer: Trainer, step: int, steps: int) -> None:
        """Called after gradient step number `step` of at most `steps` at this timestep."""

    def on_diffusion_step_end(
        self, trainer: Trainer, step: int, steps: int, row: Mapping[str, float], images: Mapping[str, Tensor]
    ) -> None:
        """Called after step number `step` of `steps`.

        Args:
            trainer: see Lightning.
            step: diffusion steps (iterations of a baseline) done.
            steps: of them in all.
            row: figures of this step: `t`, relative data `residual`, the adaptation's if there was any, `seconds`
                and `peak_memory_bytes`.
            images: `(slices, channels, height, width)` with padding: the `estimate` and, where there is a prior, its
                mean `x0_hat`.
        """


def reconstruction_callbacks(trainer: Trainer) -> list[ReconstructionCallback]:
    """Those of the trainer's callbacks that hear of diffusion steps."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ReconstructionCallback)]  # type: ignore[attr-defined]
