"""Weights & Biases as a logger that cannot end a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from ddip_pl.errors import InputError, reason

WandbMode = Literal["disabled", "offline", "online"]

log = logging.getLogger(__name__)


def wandb_logger(mode: WandbMode, folder: Path, identify: bool = False, **about: Any) -> RunLogger:
    """Logger for Weights & Biases, with files in `<folder>/wandb`. The project is `WANDB_PROJECT`, by default ddip-pl.

    Args:
        mode: "offline" only writes files, for `wandb sync`; "online" needs an account.
        folder: of the run; created when the run starts.
        identify: let W&B record the command, whose paths may name a patient, what it prints, and the computer.
        about: name, group, tags and so on, see `wandb.init`.

    Raises:
        InputError: the user is not logged in.
    """
    import wandb  # a slow import

    if mode == "online" and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            wandb.login()
        except wandb.Error as error:
            raise InputError("wandb: you are not logged in; run `wandb login`, or give --wandb offline") from error
    project = os.environ.get("WANDB_PROJECT", "ddip-pl")
    given = wandb.Settings() if identify else wandb.Settings(console="off", x_disable_meta=True)
    return RunLogger(project=project, save_dir=folder.absolute(), offline=mode == "offline", settings=given, **about)


class RunLogger(WandbLogger):
    """Lightning's logger, but if W&B fails (its process dies, its disk is full), logging ends and the run goes on.

    Attributes:
        failed: whether it has.
    """

    failed = False

    def attempt(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Do something with W&B, unless it has failed; the first failure is a warning."""
        import wandb

        if self.failed:
            return
        try:
            work(*args, **kwargs)
        except Exception as error:  # whatever W&B and its connection raise
            self.failed = True
            log.warning("Weights & Biases has failed (%s); the run goes on without it", reason(error))
            with suppress(Exception):  # so that nothing else is sent, at exit either
                wandb.teardown(exit_code=1)
            wandb.run = None  # the next run does not continue this one

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_hyperparams, *args, **kwargs)

    def finalize(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().finalize, *args, **kwargs)
