"""The command line: `ddip-pl test | predict | simulate | benchmark | compare | demo | fit | validate`."""

import logging
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

import ddip_pl.baselines
import ddip_pl.data.measured  # noqa: F401 (and --data what is in there)
from ddip_pl.callbacks.checkpoint import DiffusionCheckpoint
from ddip_pl.callbacks.logging import RunLogging, WandbMode, wandb_logger
from ddip_pl.callbacks.progress import ReconstructionProgress
from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.cli.benchmark import main as benchmark
from ddip_pl.cli.compare import main as compare
from ddip_pl.cli.help import COMMANDS, EXAMPLES, show, usage
from ddip_pl.cli.parser import Parser
from ddip_pl.cli.shipped import find_configs
from ddip_pl.cli.simulate import main as simulate
from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.data.phantoms import EllipsesDataModule
from ddip_pl.errors import InputError
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import Method, Reconstruction
from ddip_pl.results.comparison import read_runs, tables
from ddip_pl.volumes.files import volume_name


class CLI(LightningCLI):
    """What all commands share: settings of the trainer that cannot be used are bad input, and no fault of ours."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help = "Log to Weights & Biases; offline needs no account."
        parser.add_argument("--wandb", type=WandbMode, default="disabled", help=help)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].ckpt_path
        if path is not None and not zipfile.is_zipfile(path):
            raise InputError(f"ckpt_path {path}: no such file, or no complete checkpoint")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"trainer: {error}") from error


class PriorCLI(CLI):
    """`fit` and `validate`: learning a prior from phantoms."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.network.image_size", "data.image_size")
        parser.link_arguments("model.network.in_channels", "data.channels")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config[self.subcommand]
        folder = Path(settings.trainer.default_root_dir or ".")
        if settings.trainer.logger in (None, True):
            kwargs["logger"] = CSVLogger(folder)
        trainer = super().instantiate_trainer(**kwargs)
        if settings.wandb != "disabled":
            config = yaml.safe_load(self._parser(self.subcommand).dump(settings, skip_none=False))
            about = {"name": folder.resolve().name, "group": "prior", "job_type": self.subcommand, "config": config}
            trainer.loggers = [*trainer.loggers, wandb_logger(settings.wandb, folder, **about)]
        return trainer


class ReconstructionCLI(CLI):
    """`test` and `predict`: reconstructing a volume."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("test", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--images_every", type=int, default=10, help="Steps from one logged picture to the next.")
        parser.add_argument("--task", default="task", help="Name of the task, for the results.")
        parser.add_argument("--method", default="method", help="Name of the method, for the results.")
        parser.add_argument("--output", type=Path, help="Folder for the results. [outputs/TASK-METHOD-TIME]")
        parser.add_argument("--dicom", type=bool, default=False, help="Write the volume as a DICOM series too.")
        parser.add_argument("--hdf5", type=bool, default=False, help="Write it as an HDF5 file too, values complex.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config[self.subcommand]
        task, method = settings.task, settings.method
        folder = settings.output or Path("outputs", f"{task}-{method}-{time.strftime('%Y%m%d-%H%M%S')}")
        config = self._parser(self.subcommand).dump(settings, skip_none=False)
        trainer = super().instantiate_trainer(**kwargs)
        writer = VolumeWriter(folder, task, method, config, settings.dicom, settings.hdf5)
        logger = None
        if settings.wandb != "disabled":
            paths = settings.data.init_args.get("path", "volume")
            volume = " ".join(map(volume_name, [paths] if isinstance(paths, str) else paths))
            about = {"name": f"{method} {task} {volume}", "group": f"{task} {volume}", "job_type": self.subcommand}
            tags = [name[:64] for name in (task, method, volume)]  # W&B takes no longer ones
            logger = wandb_logger(settings.wandb, folder, tags=tags, **about)
        callbacks: list[Callback] = [ReconstructionProgress(), writer]
        callbacks.append(RunLogging(writer, logger, settings.images_every))
        if isinstance(self.model, Reconstruction):  # no baseline can go on from a checkpoint
            callbacks.append(DiffusionCheckpoint(folder))
        trainer.callbacks += callbacks  # type: ignore[attr-defined]
        self.writer = writer
        return trainer

    def before_predict(self) -> None:
        """Results are written one by one; none is kept in memory."""
        self.config_init.predict.return_predictions = False

    def after_test(self) -> None:
        """A table of all volumes."""
        Console().print(*tables(read_runs(self.writer.written)))

    after_predict = after_test


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of the commands and return the exit code.

    Raises:
        InputError: what the user gave cannot be used.
    """
    if command in EXAMPLES and {"-h", "--help"} & set(arguments):
        show(command)
        return 0
    arguments = find_configs(["--help" if argument == "--help_all" else argument for argument in arguments])
    common: dict[str, Any] = {
        "parser_class": Parser,
        "parser_kwargs": {"parser_mode": "omegaconf", "prog": "ddip-pl"},
        "args": [command, *arguments],
    }
    sys.argv[1:] = []  # Lightning warns of arguments that are given to it twice
    if command in PriorCLI.subcommands():
        PriorCLI(DiffusionPrior, EllipsesDataModule, **common)
    elif command in ReconstructionCLI.subcommands():
        plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                 "enable_checkpointing": False, "devices": 1}  # fmt: skip
        ReconstructionCLI(
            Method, MeasurementDataModule, subclass_mode_model=True, subclass_mode_data=True,
            trainer_class=ReconstructionTrainer, trainer_defaults=plain, seed_everything_default=0,
            save_config_callback=None, **common,
        )  # fmt: skip
    elif command == "simulate":
        simulate(arguments)
    elif command == "benchmark":
        return benchmark(arguments)
    elif command == "compare":
        compare(arguments)
    elif command == "demo":
        from ddip_pl.cli.demo import main as demo  # needs packages of its own

        demo(arguments)
    else:
        raise InputError(f"unknown command {command!r}; commands are {', '.join(COMMANDS)}")
    return 0


def bad_input(error: BaseException | None) -> str | None:
    """What was wrong with the input, in one line, or None if it was not the input.

    A parser wraps what is raised in the constructors that it calls, hence the search for the cause.
    """
    while error is not None and not isinstance(error, (InputError, OmegaConfBaseException)):
        error = error.__cause__
    return None if error is None else " ".join(str(error).split())


def main() -> int:
    """Entry point; the exit code is 0, or 2 for bad input, or 1 for a fault of ours."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    for name in ("lightning.pytorch", "lightning.fabric", "nibabel.global"):
        logging.getLogger(name).setLevel(logging.ERROR)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    try:
        return run(arguments[0], arguments[1:])
    except Exception as error:
        if debug:
            traceback.print_exc()
        if line := bad_input(error):
            print(f"ddip-pl: error: {line}", file=sys.stderr)
            return 2
        print(f"ddip-pl: a fault of ddip-pl: {error!r}; with --debug it says where", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
