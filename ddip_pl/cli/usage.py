"""The text of `ddip-pl --help`, and the options of the commands that need no settings from files."""

from pathlib import Path

from ddip_pl.errors import ArgumentParser

COMMANDS = {
    "test": "simulate a measurement of a volume, reconstruct it and compare the two",
    "predict": "reconstruct measured data, or a volume without comparison",
    "simulate": "write a simulated measurement of a volume to a file",
    "benchmark": "test many methods on many tasks and volumes, in one table",
    "compare": "print a table and draw curves of finished runs",
    "demo": "reconstruct a brain with FBP, DDS and D3IP, side by side",
    "fit": "train a prior on random ellipses",
    "validate": "compute the loss of a prior on held-out ellipses",
    "workspace": "create a Weights & Biases dashboard for a project's runs",
    "completion": "print a script that completes commands and options in a shell",
}
EXAMPLES = {
    "test": "--config configs/task/sv_ct.yaml --config configs/method/d3ip.yaml --data.path VOLUME.nii.gz",
    "predict": "--config configs/task/measured.yaml --config configs/method/d3ip.yaml --data.path SCAN.h5",
    "fit": "--config configs/prior/ellipses_128.yaml",
    "validate": "--config configs/prior/ellipses_128.yaml --ckpt_path LAST.ckpt",
    "simulate": "--config configs/task/sv_ct.yaml --data.path VOLUME.nii.gz --output SCAN.h5",
}
WANDB = ("disabled", "online", "offline")
BENCHMARK = """Every method on every task and volume, in one table.

Each run is a separate `ddip-pl test` process, so that its peak memory is measured alone and its failure stops no other.
When the command is repeated, finished runs are skipped and interrupted ones resumed. The report covers everything in
the output folder: several commands with the same output share one table.

A file of methods lists variations by name:

    methods:
      d3ip, K = 1:
        config: ../method/d3ip.yaml
        model.adaptation.init_args.slices: 1
      d3ip, published sampling:
        config: [../method/d3ip.yaml, ../sampler/published.yaml]
"""


def usage() -> str:
    """The overview of all commands."""
    commands = "\n".join(f"  {name:<11}{purpose}" for name, purpose in COMMANDS.items())
    examples = "\n".join(f"  ddip-pl {name} {EXAMPLES[name]}" for name in ("test", "predict", "fit"))
    return (
        "usage: ddip-pl COMMAND [options]\n\n"
        "Reconstruct 3D CT and MRI volumes with a diffusion prior trained on ellipses and adapted to each scan."
        f"\n\n{commands}\n\n{examples}\n\n"
        "ddip-pl COMMAND --help explains the options of a command; --debug prints the traceback of an error;\n"
        "ddip-pl --version prints the version."
    )


def parser(command: str) -> ArgumentParser:
    """The parser of a command that needs no settings from files."""
    made = ArgumentParser(f"ddip-pl {command}", BENCHMARK if command == "benchmark" else sentence(command))
    if command == "benchmark":
        made.add_argument("--tasks", nargs="+", required=True, type=Path, help="task configs")
        made.add_argument("--methods", nargs="+", required=True, type=Path, help="method configs or files of methods")
        made.add_argument("--volumes", nargs="+", required=True, type=Path, help="volumes to measure and reconstruct")
        made.add_argument("--slices", type=int, help="central slices of each volume [all]")
        made.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for the results")
        made.add_argument("--wandb", choices=WANDB, default="disabled", help="log every run to Weights & Biases")
        made.add_argument("--plugins", nargs="+", default=[], help="modules whose classes the configs name")
    elif command == "compare":
        made.add_argument("runs", nargs="+", type=Path, help="folders written by test, predict, benchmark or demo")
        made.add_argument("--output", type=Path, default=Path("outputs/compare"), help="folder for table and curves")
    elif command == "demo":
        made.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for the results")
        made.add_argument("--slices", type=int, default=8, help="central axial slices [8]")
        made.add_argument("--steps", type=int, default=40, help="diffusion steps [40]")
    elif command == "workspace":
        made.add_argument("project", metavar="ENTITY/PROJECT", help="project with the runs")
    elif command == "completion":
        made.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    return made


PLAIN = ("benchmark", "compare", "demo", "workspace", "completion")  # commands that `parser` knows


def sentence(command: str) -> str:
    """What a command does."""
    purpose = COMMANDS[command]
    return f"{purpose[0].upper()}{purpose[1:]}."
