"""BART's reconstructions and ours from the same simulated k-space, by the same metrics. Debian has a package `bart`.

Every given strength is run: choose one on one volume and judge it on another. Times are those of whole processes for
BART and of the reconstruction alone for ddip-pl, with as many threads as OMP_NUM_THREADS says.

    python benchmarks/bart.py --task csmri --volumes head.nii.gz other.nii.gz --slices 8
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning import seed_everything
from rich.console import Console
from rich.table import Table

from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.errors import InputError
from ddip_pl.methods.configs import find_configs
from ddip_pl.results.result import Result
from ddip_pl.scans.bart import read_cfl, write_bart
from ddip_pl.volumes.files import volume_name

OURS = ("fbp", "l1_wavelet", "admm_tv", "dds")
SLICE = "13"  # BART's dimension of slices


def ours(method: str, task: str, volume: Path, slices: int, more: list[str]) -> Result:
    """The result of a method of ddip-pl, as `ddip-pl test` makes it."""
    parser = make_parser("test")
    given = ["--config", task, "--config", method, "--data.path", str(volume), "--data.slices", str(slices), *more]
    made = parser.instantiate(parser.read(find_configs(given)))
    seed_everything(0, verbose=False)
    scan = made.data.simulate(made.data.size or made.model.image_size or 128)
    return made.model.reconstruct(scan.measurement, scan.frame)


def pics(result: Result, regularisation: str) -> tuple[Result, float]:
    """The same measurement, each slice reconstructed by `bart pics`, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as name:
        folder, slices = Path(name), []
        write_bart(folder / "scan.cfl", result.measurement, result.frame)
        trajectory = ["-t", "scan_traj"] if (folder / "scan_traj.cfl").exists() else []

        def bart(*line: str) -> None:
            subprocess.run(["bart", *line], cwd=folder, check=True, capture_output=True)

        clock = time.monotonic()
        for i in range(len(result.measurement)):
            bart("slice", SLICE, str(i), "scan", "one")
            bart("slice", SLICE, str(i), "scan_maps", "maps")
            bart("pics", "-S", *regularisation.split(), *trajectory, "one", "maps", "image")
            slices.append(np.array(read_cfl(folder / "image.cfl")).reshape(result.images.shape[2:]))
        seconds = time.monotonic() - clock
    low, high = result.frame.window
    images = np.stack([[one.real, one.imag] for one in slices]) / (high - low)
    return replace(result, images=torch.from_numpy(images.astype(np.float32)), trajectory=()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="csmri", help="config of a multi-coil task")
    parser.add_argument("--volumes", type=Path, nargs="+", required=True)
    parser.add_argument("--slices", type=int, default=8, help="central slices of each volume")
    parser.add_argument("--methods", nargs="+", default=OURS, help="configs of methods of ddip-pl")
    parser.add_argument("--strengths", nargs="+", default=["0.001", "0.003", "0.01"], help="of BART's regularisation")
    args, more = parser.parse_known_args()
    if shutil.which("bart") is None:
        raise InputError("bart is not installed; Debian and Ubuntu have a package of this name")
    theirs = {"bart pics -l2": "-l2 -r0.001 -i100"}
    for name, letter in ("wavelets", "W"), ("total variation", "T"):
        theirs |= {f"bart pics {name} {strength}": f"-R {letter}:3:0:{strength} -i200" for strength in args.strengths}
    for volume in args.volumes:
        table = Table("method", "PSNR (dB)", "SSIM", "seconds", title=f"{args.task}, {volume_name(volume)}")

        def row(name: str, result: Result, seconds: float, table: Table = table) -> None:
            figures = result.metrics()
            table.add_row(name, f"{figures['psnr']:.2f}", f"{figures['ssim']:.3f}", f"{seconds:.1f}")

        for method in args.methods:
            result = ours(method, args.task, volume, args.slices, more)
            row(Path(method).stem, result, result.seconds)
        for name, regularisation in theirs.items():
            row(name, *pics(result, regularisation))
        Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"bart.py: error: {error}", file=sys.stderr)
        sys.exit(2)
