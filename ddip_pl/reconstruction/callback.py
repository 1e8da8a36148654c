"""The hook that reconstruction adds to Lightning's."""

from lightning import Callback, Trainer


class ReconstructionCallback(Callback):
    """A callback that hears of every diffusion step."""

    def on_diffusion_step_end(self, trainer: Trainer, step: int, steps: int, row: dict[str, float]) -> None:
        """Called after step number `step` of `steps`.

        Args:
            trainer: see Lightning.
            step: diffusion steps done.
            steps: diffusion steps in all.
            row: figures of this step: `t`, relative data `residual`, adaptation `loss` if there was any, `seconds`.
        """
