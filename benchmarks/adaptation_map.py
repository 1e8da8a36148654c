"""Where adaptation matters: what it gains over angles, noise and priors, for parallel-beam CT of one volume.

In every cell the volume is measured with this number of angles and noise level, and reconstructed without and with
adaptation. Figures are kept in a CSV file; when the command is repeated, the rows in it are not computed again. A
picture of the gains is written next to it.

    python benchmarks/adaptation_map.py dicom_mr_t1 --output docs/results/adaptation-map.csv
"""

import argparse
import itertools
import logging
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rows import Row, append, read

from ddip_pl import load_method
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.physics import ParallelBeamCT
from ddip_pl.reconstruction.module import SHIPPED_SIZE

METHODS = ("dds", "d3ip_em")  # without and with adaptation
PRIORS = ("ellipses_128_published", "ellipses_128")
CELL = ("prior", "angles", "noise")
FIGURES = tuple(f"{figure}_{method}" for method in METHODS for figure in ("psnr", "ssim", "seconds"))


def cell(prior: str, angles: int, noise: float, args: argparse.Namespace) -> dict[str, float]:
    """PSNR, SSIM and seconds of both methods."""
    torch.manual_seed(args.seed)
    operator = partial(ParallelBeamCT, angles=angles)
    data = VolumeDataModule(args.volume, operator, noise, slices=args.slices, window=args.window)
    scan, figures = data.simulate(SHIPPED_SIZE), []
    for name in METHODS:
        method = load_method(name, prior=prior, **{"sampler.steps": args.steps}).to(args.device)
        torch.manual_seed(args.seed)
        clock = time.monotonic()
        result = method.reconstruct(scan.measurement.to(args.device), scan.frame)
        metrics = result.metrics()
        figures += [metrics["psnr"], metrics["ssim"], time.monotonic() - clock]
    return dict(zip(FIGURES, figures, strict=True))


def draw(rows: list[Row], path: Path) -> None:
    """One map of gains for each prior; in each cell the gain in dB, and below it the PSNR without adaptation."""
    without, adapted = (f"psnr_{method}" for method in METHODS)
    gains = {tuple(row[name] for name in CELL): float(row[adapted]) - float(row[without]) for row in rows}
    start = {tuple(row[name] for name in CELL): float(row[without]) for row in rows}
    priors = [prior for prior in PRIORS if any(key[0] == prior for key in gains)]
    angles, noise = (sorted({key[axis] for key in gains}, key=float) for axis in (1, 2))
    limit = max(0.1, *(abs(gain) for gain in gains.values()))
    figure = Figure(figsize=(1.1 * len(angles) * len(priors) + 1.5, 0.75 * len(noise) + 1.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(priors), sharey=True))
    for axis, prior in zip(axes, priors, strict=True):
        grid = np.array([[gains.get((prior, a, n), np.nan) for a in angles] for n in noise])
        shown = axis.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
        for (y, n), (x, a) in itertools.product(enumerate(noise), enumerate(angles)):
            if (prior, a, n) in gains:
                white = abs(gains[prior, a, n]) > 0.6 * limit
                text = f"{gains[prior, a, n]:+.2f}\n{start[prior, a, n]:.1f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if white else "black")
        axis.set(title=prior, xlabel="angles", xticks=range(len(angles)), xticklabels=angles)
        axis.set(yticks=range(len(noise)), yticklabels=[f"{float(n):g}" for n in noise])
    axes[0].set_ylabel("noise level $\\sigma_y$")
    figure.colorbar(shown, ax=axes, label=f"PSNR of {METHODS[1]} minus {METHODS[0]} (dB)")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--angles", type=int, nargs="+", default=[8, 15, 30, 60, 120])
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-4, 2e-3, 2e-2], help="sigma_y")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument("--slices", type=int, default=8, help="central slices of the volume")
    parser.add_argument("--window", type=float, nargs=2, help="intensities that become 0 and 1")
    parser.add_argument("--steps", type=int, default=40, help="sampling steps of a trajectory")
    parser.add_argument("--output", type=Path, default=Path("outputs/adaptation-map.csv"), help="CSV file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    for prior, angles, noise in itertools.product(args.priors, args.angles, args.noise):
        key = dict(zip(CELL, (prior, str(angles), f"{noise:g}"), strict=True))
        done = [row for row in read(args.output) if all(row[name] == key[name] for name in CELL)]
        if not done:
            done = [key | {name: f"{value:.6g}" for name, value in cell(prior, angles, noise, args).items()}]
            append(args.output, [*CELL, *FIGURES], done[0])
        psnr = [float(done[0][f"psnr_{method}"]) for method in METHODS]
        print(f"{prior}, {angles} angles, {noise:g}: {psnr[0]:.2f} {psnr[1] - psnr[0]:+.2f} dB", flush=True)
        draw(read(args.output), args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
