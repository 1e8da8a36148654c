"""`ddip-pl test` and `ddip-pl predict`: reconstruct volumes."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.markup import escape

import ddip_pl.data.measured  # noqa: F401 (one of the classes for --data)
from ddip_pl.callbacks.checkpoint import DiffusionCheckpoint
from ddip_pl.callbacks.checkpoint_file import CheckpointFile
from ddip_pl.callbacks.fingerprint import fingerprint, provenance
from ddip_pl.callbacks.interruption import Interruption
from ddip_pl.callbacks.logging import RunLogging
from ddip_pl.callbacks.progress import ReconstructionProgress
from ddip_pl.callbacks.wandb import wandb_logger
from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.cli.parser import Parser
from ddip_pl.cli.trainer import add_trainer, check_checkpoint, make_trainer
from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.module import Reconstruction
from ddip_pl.results.tables import read_runs, tables
from ddip_pl.volumes.files import split, volume_name


def main(command: str, arguments: Sequence[str]) -> int:
    """Reconstruct volumes, and compare them with the reference (`test`) or not (`predict`).

    Returns:
        The exit code: 2 if some result could not be written where it should be.

    Raises:
        InputError: the settings or the data cannot be used.
    """
    parser = make_parser(command)
    settings = parser.read(arguments)
    check_checkpoint(settings.ckpt_path)
    seed_everything(settings.seed_everything, workers=True)
    made = parser.instantiate(settings)
    folder = settings.output or Path("outputs", f"{settings.task}-{settings.method}-{time.strftime('%Y%m%d-%H%M%S')}")
    config = parser.dump(settings, skip_unset=False)
    shown = config if settings.identify else without_folders(config)
    found = fingerprint(command, yaml.safe_load(config))
    writer = VolumeWriter(
        folder,
        settings.task,
        settings.method,
        shown,
        settings.dicom,
        settings.hdf5,
        settings.identify,
        provenance(found),
    )
    made.data.is_finished = writer.has
    logging = RunLogging(writer, make_logger(command, settings, folder), settings.images_every)
    path = folder / "last.ckpt"
    again = shlex.join(["ddip-pl", command, *arguments, "--ckpt_path", str(path), "--output", str(folder)])
    callbacks: list[Callback] = [ReconstructionProgress(), writer, logging, Interruption(path, again)]
    if made.model.resumable:
        callbacks.append(DiffusionCheckpoint(path, settings.checkpoint_every))
    trainer = make_trainer(made.trainer, callbacks, [CheckpointFile(found)])
    if command == "test":
        trainer.test(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path, verbose=False)
    else:  # the callback writes each result, so that none has to stay in memory
        trainer.predict(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path, return_predictions=False)
    runs, console = read_runs(writer.written), Console()
    console.print(*tables(runs))
    for run in runs:
        for warning in run.metrics["warnings"]:
            console.print(f"[yellow]warning[/]: {escape(run.folder.name)}: {escape(warning)}", soft_wrap=True)
    return 2 if writer.failures else 0


def make_parser(command: str) -> Parser:
    """The parser with all settings of a run."""
    parser = Parser.of(command)
    parser.add_choice(Method, "model", usual=Reconstruction)
    parser.add_choice(MeasurementDataModule, "data", usual=VolumeDataModule)
    add_trainer(
        parser, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        devices=1,
    )  # fmt: skip
    parser.add_argument("--images_every", type=int, default=10, help="Steps between two logged pictures.")
    parser.add_argument("--checkpoint_every", type=float, default=60, help="Seconds between two checkpoints.")
    parser.add_argument("--task", default="task", help="Name of the task, for the results.")
    parser.add_argument("--method", default="method", help="Name of the method, for the results.")
    parser.add_argument("--output", type=Path, help="Folder for the results. [outputs/TASK-METHOD-TIME]")
    parser.add_argument("--dicom", type=bool, default=False, help="Write the volume as a DICOM series too.")
    parser.add_argument("--hdf5", type=bool, default=False, help="Write it as an HDF5 file too, complex values kept.")
    parser.add_argument("--identify", type=bool, default=False, help="Keep paths and the patient in the results.")
    return parser


def make_logger(command: str, settings: Namespace, folder: Path) -> Logger | None:
    """The logger for Weights & Biases, if enabled."""
    if settings.wandb == "disabled":
        return None
    task, method, paths = settings.task, settings.method, settings.data.init_args.get("path", "volume")
    volume = " ".join(map(volume_name, [paths] if isinstance(paths, str) else paths))
    about = {"name": f"{method} {task} {volume}", "group": f"{task} {volume}", "job_type": command}
    tags = [name[:64] for name in (task, method, volume)]  # the longest that W&B accepts
    return wandb_logger(settings.wandb, folder, settings.identify, tags=tags, **about)


def without_folders(config: str) -> str:
    """Settings, YAML, with the names of files only: their folders may be named after patients."""

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shortened(part) for name, part in value.items()}
        if isinstance(value, list):
            return [shortened(part) for part in value]
        if not isinstance(value, str) or Path(value).name in ("", value):
            return value
        place, choice = split(value)
        return f"{place.name}:{choice}" if choice else place.name

    return yaml.safe_dump(shortened(yaml.safe_load(config)), sort_keys=False)
