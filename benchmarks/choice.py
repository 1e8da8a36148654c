"""How well hidden data choose a method: each candidate of `auto` in its trial and on all data, on tasks and volumes.

For each task and volume it prints the hidden discrepancy and the PSNR of every candidate, Kendall's tau between hidden
discrepancy and -PSNR (1 if both give the same order), and the regret: the best PSNR minus that of the chosen candidate.
Figures are kept in a CSV file; when the command is repeated, the rows in it are not computed again. All other options
are passed on as for `ddip-pl test`, such as --data.size 64; use a separate CSV file for each set of them.

    python benchmarks/choice.py --tasks sv_ct sv_ct_noisy --volumes ct_thorax.nii.gz --slices 16 --output ct.csv
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from rich.console import Console
from rich.table import Table
from rows import Row, append, read
from scipy.stats import kendalltau

from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.data.simulated import SIZE
from ddip_pl.errors import InputError
from ddip_pl.methods.configs import SHIPPED, find_configs, read_config
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction import BestOf, Method
from ddip_pl.results.result import Result
from ddip_pl.volumes.files import volume_name

KEYS = ("task", "volume", "slices", "candidate")
FIGURES = ("hidden_discrepancy", "psnr", "ssim", "trial_seconds", "seconds")


def prepare(task: Path, volume: Path, slices: int, args: argparse.Namespace, more: list[str]) -> tuple[BestOf, Any]:
    """The method and the scan that `ddip-pl test` would make of these settings."""
    parser = make_parser("test")
    given = ["--config", str(task), "--config", str(args.method), "--data.path", str(volume)]
    made = parser.instantiate(parser.read([*given, "--data.slices", str(slices), *more]))
    seed_everything(args.seed, verbose=False)
    return made.model.to(args.device), made.data.simulate(made.data.size or made.model.image_size or SIZE)


def run(candidate: Method, measurement: Measurement, seed: int) -> tuple[Result, float]:
    """The candidate's result and the seconds that it takes, starting from the seed."""
    torch.manual_seed(seed)
    clock = time.monotonic()
    result = candidate.reconstruct(measurement)
    return result, time.monotonic() - clock


def figures(method: BestOf, name: str, measurement: Measurement, seed: int) -> dict[str, float]:
    """Figures of one candidate; empty if it refuses the measurement.

    From all data, the candidate reconstructs the same images as `auto` does when it chooses it.
    """
    kept, hidden = method.parts(measurement)
    try:
        trial, trial_seconds = run(method.candidates[name], kept, seed)
        result, seconds = run(method.candidates[name], measurement, seed)
    except InputError as error:
        Console(stderr=True).print(f"{name}: {error}", highlight=False)
        return {}
    metrics = result.metrics()
    values = hidden.discrepancy(trial.tensor), metrics["psnr"], metrics["ssim"], trial_seconds, seconds
    return dict(zip(FIGURES, values, strict=True))


def summarise(rows: list[Row]) -> tuple[float, float]:
    """Kendall's tau between hidden discrepancy and -PSNR, and the regret in dB, over the candidates of one volume."""
    hidden, psnr = ([float(row[name]) for row in rows] for name in ("hidden_discrepancy", "psnr"))
    tau = kendalltau(hidden, [-value for value in psnr]).statistic
    return float(tau), max(psnr) - psnr[hidden.index(min(hidden))]


def show(console: Console, rows: list[Row]) -> None:
    """Print the candidates of one task and volume, the chosen one first, and what the choice costs."""
    done = sorted((row for row in rows if row["psnr"]), key=lambda row: float(row["hidden_discrepancy"]))
    if not done:
        return
    table = Table("candidate", "hidden discrepancy", "PSNR", "SSIM", "s", title=", ".join(done[0][k] for k in KEYS[:2]))
    for row in done:
        hidden, psnr, ssim, _, seconds = (float(row[name]) for name in FIGURES)
        table.add_row(row["candidate"], f"{hidden:.4f}", f"{psnr:.2f}", f"{ssim:.3f}", f"{seconds:.0f}")
    tau, regret = summarise(done)
    console.print(table, f"tau {tau:.2f}, regret {regret:.2f} dB", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="names or files of tasks")
    parser.add_argument("--volumes", type=Path, nargs="+", required=True)
    parser.add_argument("--slices", type=int, default=16, help="central slices of each volume")
    parser.add_argument("--output", type=Path, default=Path("outputs/choice.csv"), help="CSV file")
    parser.add_argument("--method", type=Path, default=SHIPPED / "method" / "auto.yaml", help="config with candidates")
    parser.add_argument("--candidates", nargs="+", help="names of those to compare; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args, more = parser.parse_known_args(find_configs(sys.argv[1:]))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    console = Console()
    for task in args.tasks:
        for volume in args.volumes:
            method, scan = prepare(task, volume, args.slices, args, more)
            measurement = scan.measurement.to(args.device)
            subject = (read_config(task).get("task", task.stem), volume_name(volume), str(args.slices))
            candidates = args.candidates or list(method.candidates)
            if unknown := set(candidates) - set(method.candidates):
                parser.error(f"no candidates {sorted(unknown)}; choose from {list(method.candidates)}")
            for name in candidates:
                key = dict(zip(KEYS, (*subject, name), strict=True))
                if any(all(row[k] == key[k] for k in KEYS) for row in read(args.output)):
                    continue
                found = figures(method, name, measurement, args.seed)
                append(
                    args.output, [*KEYS, *FIGURES], key | {figure: f"{value:.6g}" for figure, value in found.items()}
                )
            rows = [row for row in read(args.output) if tuple(row[k] for k in KEYS[:3]) == subject]
            show(console, [row for row in rows if row["candidate"] in candidates])


if __name__ == "__main__":
    main()
