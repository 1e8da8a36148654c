"""Prints `ddip-pl COMMAND --help`: the settings that this project adds to Lightning's, described by the docstrings."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ddip_pl.cli.source import arguments, choices, settings
from ddip_pl.cli.usage import EXAMPLES, sentence

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
ESTIMATORS = ("DDS", "DDNM", "DPS", "DiffusionMBIR")
ADAPTATIONS = ("VolumeAdaptation", "SlicewiseAdaptation", "MetaAdaptation", "SelfTraining")
BASELINES = ("TotalVariation", "L1Wavelet", "LocallyLowRank", "DeepImagePrior", "DirectInverse")
OPERATORS = ("ParallelBeamCT", "FanBeamCT", "ConeBeamCT", "SingleCoilMRI", "SENSE", "NonCartesianMRI")
OTHERS = (
    "Reconstruction", "BestOf", "Sampler", "LoraTraining", "VolumeDataModule", "MeasuredDataModule",
    "EllipsesDataModule", "DiffusionPrior", "UNetConfig", "Counters", *OPERATORS,
)  # fmt: skip


def pages(command: str) -> dict[str, dict[str, str]]:
    """Options by section."""
    if command in ("fit", "validate"):
        return {
            "Training (--model)": settings("--model", "DiffusionPrior"),
            "Network (--model.network)": settings("--model.network", "UNetConfig"),
            "Phantoms (--data)": settings("--data", "EllipsesDataModule"),
            "Run": TRAINING | RUN,
        }
    if command == "simulate":
        return {
            "Volume and its simulated measurement (--data)": settings("--data", "VolumeDataModule"),
            "Operators (--data.operator CLASS)": choices(*OPERATORS),
            "Run": {"--output": "file to write: HDF5 (.h5), or k-space for BART (.cfl)"}
            | {name: RUN[name] for name in ("--config", "--seed_everything")},
        }
    measured = {
        "Measured data (--data, class MeasuredDataModule, which configs/task/measured.yaml chooses)": settings(
            "--data", "MeasuredDataModule"
        ),
        "One of several volumes in a file (--data.volume)": settings("--data.volume", "Counters"),
    }
    return {
        **(measured if command == "predict" else {}),
        "Volume and its simulated measurement (--data)": settings("--data", "VolumeDataModule"),
        "Reconstruction with a prior (--model)": settings("--model", "Reconstruction"),
        "Sampling": settings("--model.sampler", "Sampler"),
        "Estimators (--model.estimator CLASS) and their settings (--model.estimator.iterations 10)": choices(
            *ESTIMATORS
        ),
        "Adaptations (--model.adaptation CLASS)": choices(*ADAPTATIONS),
        "Settings of VolumeAdaptation": settings("--model.adaptation", "VolumeAdaptation"),
        "Training of the LoRA weights, in every adaptation": settings("--model.adaptation.training", "LoraTraining"),
        "Methods without a prior (--model CLASS)": choices(*BASELINES),
        "Method chosen by the data (--model BestOf, see configs/method/auto.yaml)": settings("--model", "BestOf"),
        "Results": {"--task, --method": "names of task and method"} | RESULTS,
        "Run": RUN,
    }


def known_names() -> set[str]:
    """Names of the classes and of their settings."""
    classes = {*ESTIMATORS, *ADAPTATIONS, *BASELINES, *OTHERS}
    return classes.union(*map(arguments, classes))


def show(command: str) -> None:
    """Print the help of a command that Lightning runs."""
    console = Console()
    console.print(Text(f"ddip-pl {command} {EXAMPLES[command]}\n\n{sentence(command)}\n"))
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
