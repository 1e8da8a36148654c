"""Prints `ddip-pl COMMAND --help`: the settings that this project adds to Lightning's, described by the docstrings."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from docstring_parser import parse
from lightning import Trainer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ddip_pl.adaptation import LoraTraining, MetaAdaptation, SelfTraining, SlicewiseAdaptation, VolumeAdaptation
from ddip_pl.baselines import DeepImagePrior, DirectInverse, L1Wavelet, TotalVariation
from ddip_pl.cli.usage import COMMANDS, EXAMPLES
from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.data.measured import MeasuredDataModule
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.estimators import DDNM, DDS, DPS, DiffusionMBIR
from ddip_pl.physics import SENSE, ConeBeamCT, FanBeamCT, NonCartesianMRI, ParallelBeamCT, SingleCoilMRI
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.prior.unet import UNetConfig
from ddip_pl.reconstruction import BestOf, Reconstruction, Sampler

RESULTS = {
    "--output": "folder for the results [outputs/TASK-METHOD-TIME]",
    "--dicom true": "write the volume as a DICOM series too",
    "--hdf5 true": "write the volume as an HDF5 file too, complex values kept",
    "--identify true": "keep paths in config.yaml and logs, and the patient in DICOM files, see docs/privacy.md",
    "--images_every": "diffusion steps between two logged pictures [10]",
    "--checkpoint_every": "seconds between two checkpoints [60]",
}
RUN = {
    "--config": "file with settings; later arguments override earlier ones, so put options after files",
    "--ckpt_path": "resume an interrupted run from this checkpoint",
    "--seed_everything": "seed of all random numbers [0]",
    "--trainer.accelerator": "cpu, gpu, mps or auto [auto]",
    "--trainer.precision": "such as bf16-mixed [32-true]",
    "--wandb": "log to Weights & Biases: disabled, online, or offline, which needs no account [disabled]",
    "--trainer.logger": "one of Lightning's loggers",
    "--plugins": "modules of your own whose classes settings may name, see docs/extending.md; not in config files",
    "--print_config": "print all settings and exit",
    "--debug": "print the traceback of an error",
}
TRAINING = {
    "--trainer.max_steps": "number of training steps",
    "--trainer.default_root_dir": "folder for the results",
}
ESTIMATORS = (DDS, DDNM, DPS, DiffusionMBIR)
ADAPTATIONS = (VolumeAdaptation, SlicewiseAdaptation, MetaAdaptation, SelfTraining)
BASELINES = (TotalVariation, L1Wavelet, DeepImagePrior, DirectInverse)
OPERATORS = (ParallelBeamCT, FanBeamCT, ConeBeamCT, SingleCoilMRI, SENSE, NonCartesianMRI)
OTHERS = (
    Reconstruction, BestOf, Sampler, LoraTraining, VolumeDataModule, MeasuredDataModule, EllipsesDataModule,
    DiffusionPrior, UNetConfig, Trainer, *OPERATORS,
)  # fmt: skip


def settings(prefix: str, *classes: Callable[..., Any]) -> dict[str, str]:
    """Options for the arguments of the classes, with their descriptions from the docstrings and their defaults."""
    options = {}
    for made in classes:
        described = {p.arg_name.strip("*"): p.description for p in parse(inspect.getdoc(made) or "").params}
        for name, argument in inspect.signature(made).parameters.items():
            if argument.kind is argument.VAR_KEYWORD:
                continue
            default = "" if argument.default in (argument.empty, None) else f" [{argument.default}]"
            options[f"{prefix}.{name}"] = " ".join((described.get(name) or "").split()) + default
    return options


def choices(classes: Iterable[type]) -> dict[str, str]:
    """The first sentence of each class's docstring."""
    return {made.__name__: (inspect.getdoc(made) or "").split("\n\n")[0].replace("\n", " ") for made in classes}


def pages(command: str) -> dict[str, dict[str, str]]:
    """Options by section."""
    if command in ("fit", "validate"):
        return {
            "Training (--model)": settings("--model", DiffusionPrior),
            "Network (--model.network)": settings("--model.network", UNetConfig),
            "Phantoms (--data)": settings("--data", EllipsesDataModule),
            "Run": TRAINING | RUN,
        }
    measured = {
        "Measured data (--data, class MeasuredDataModule, which configs/task/measured.yaml chooses)": settings(
            "--data", MeasuredDataModule
        )
    }
    return {
        **(measured if command == "predict" else {}),
        "Volume and its simulated measurement (--data)": settings("--data", VolumeDataModule),
        "Reconstruction with a prior (--model)": settings("--model", Reconstruction),
        "Sampling": settings("--model.sampler", Sampler),
        "Estimators (--model.estimator CLASS) and their settings (--model.estimator.iterations 10)": choices(
            ESTIMATORS
        ),
        "Adaptations (--model.adaptation CLASS)": choices(ADAPTATIONS),
        "Settings of VolumeAdaptation": settings("--model.adaptation", VolumeAdaptation),
        "Training of the LoRA weights, in every adaptation": settings("--model.adaptation.training", LoraTraining),
        "Methods without a prior (--model CLASS)": choices(BASELINES),
        "Method chosen by the data (--model BestOf, see configs/method/auto.yaml)": settings("--model", BestOf),
        "Results": {"--task, --method": "names of task and method"} | RESULTS,
        "Run": RUN,
    }


def known_names() -> set[str]:
    """Names of the classes and of their settings."""
    classes = {*ESTIMATORS, *ADAPTATIONS, *BASELINES, *OTHERS}
    return {made.__name__ for made in classes} | {
        name for made in classes for name in inspect.signature(made).parameters
    }


def show(command: str) -> None:
    """Print the help of a command that Lightning runs."""
    console = Console()
    purpose = COMMANDS[command]
    console.print(Text(f"ddip-pl {command} {EXAMPLES[command]}\n\n{purpose[0].upper()}{purpose[1:]}.\n"))
    for heading, options in pages(command).items():
        console.print(Text(heading, style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column()
        for name, text in options.items():
            grid.add_row(Text(name), Text(text))
        console.print(Padding(grid, (0, 0, 1, 2)))
    console.print(
        Text(
            "--model.help CLASS, --data.help CLASS and so on explain a class. "
            f"ddip-pl {command} --help_all lists all options, including those of Lightning's Trainer."
        )
    )
