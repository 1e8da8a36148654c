"""Measure priors: denoising, and sparse-view CT in and out of distribution, compared with total variation and FBP.

For each prior it prints tables and one row that summarises them, and writes them as JSON. The strength of total
variation is tuned on separate images: other phantoms, or the other volumes.

    python benchmarks/prior.py PRIOR --volume ct.nii.gz -1000 1000 --volume brain.nii.gz
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.data.ellipses import VALIDATION_SEED
from ddip_pl.evaluation.metrics import summary
from ddip_pl.methods.shipped import load_method
from ddip_pl.physics import ParallelBeamCT
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.module import VALIDATION_TIMESTEPS
from ddip_pl.prior.phantoms import draw_ellipses, phantoms
from ddip_pl.prior.schedule import diffuse, noise_schedule
from ddip_pl.volumes.files import read_nifti
from ddip_pl.volumes.slices import cut, fit, to_unit_interval

REGIMES = {"60 angles, sigma_y 2e-4": (60, 2e-4), "30 angles, sigma_y 8e-4": (30, 8e-4), "30 angles, 0.01": (30, 1e-2)}
STRENGTHS = 10 ** np.arange(-2.25, -0.7, 0.25)  # of total variation, in units of sigma_y
Scores = dict[str, dict[str, float]]


def held_out_phantoms(count: int, size: int, seed: int = VALIDATION_SEED) -> Tensor:
    """Phantoms as published that no training run uses, `(count, 1, size, size)`."""
    ellipses = np.stack([draw_ellipses(np.random.default_rng((seed, index))) for index in range(count)])
    return phantoms(torch.from_numpy(ellipses), size)


def read(path: str, window: list[float], slices: int, size: int) -> Tensor:
    """Central axial slices of a volume, prepared as for a reconstruction, `(slices, 1, size, size)`."""
    volume = read_nifti(Path(path))
    low, high = window or (float(volume.data.min()), float(np.percentile(volume.data, 99.9)))
    images = to_unit_interval(cut(volume, "axial", None, slices)[0], (low, high))
    return fit(torch.from_numpy(images)[:, None].float(), (size, size), enlarge=True)[0]


def measure(x: Tensor, angles: int, sigma_y: float) -> Measurement:
    operator = ParallelBeamCT((len(x), *x.shape[2:]), angles)
    y = simulate(x, operator, sigma_y, torch.Generator().manual_seed(0))
    return Measurement(y, operator, sigma_y, x)


def denoising_loss(network: Any, x: Tensor) -> dict[int, float]:
    """Mean squared error of the predicted noise; every prior gets the same noise."""
    abar, noise = noise_schedule(), torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    losses = {}
    for t in VALIDATION_TIMESTEPS:
        eps = torch.cat([network(part, torch.full((len(part),), t)) for part in diffuse(x, noise, abar[t]).split(8)])
        losses[t] = float((eps[:, :1] - noise).square().mean())
    return losses


def reconstruct(name: str, prior: str, measurement: Measurement, **changes: Any) -> Tensor:
    """Images by a shipped method with some settings changed."""
    torch.manual_seed(0)
    method = load_method(name, prior=prior, **changes)
    torch.manual_seed(0)
    return method.reconstruct(measurement).tensor


def tuned_strength(others: list[Measurement], tv: Callable[[Measurement, float], Tensor]) -> float:
    """The strength of total variation with the highest mean PSNR on other images."""
    score = {}
    for strength in STRENGTHS * others[0].sigma_y:
        images = [(tv(m, strength), m.reference) for m in others]
        score[strength] = np.mean([summary(x, truth)["psnr"] for x, truth in images if truth is not None])
    return max(score, key=lambda strength: score[strength])


def slicewise_tv(measurement: Measurement, strength: float) -> Tensor:
    """2D total variation."""
    return torch.cat([tv_reconstruction(measurement[i : i + 1], strength) for i in range(len(measurement))])


def compare(
    prior: str,
    methods: list[str],
    measurement: Measurement,
    tuning: list[Measurement],
    tv: Callable[..., Tensor],
    **changes: Any,
) -> Scores:
    """PSNR, SSIM and seconds of FBP, tuned total variation and the methods, on one measurement."""
    assert measurement.reference is not None
    strength = tuned_strength(tuning, tv)
    runs: dict[str, Callable[[], Tensor]] = {
        "fbp": lambda: measurement.operator.pseudo_inverse(measurement.y),
        "tv": lambda: tv(measurement, strength),
    }
    runs |= {method: lambda method=method: reconstruct(method, prior, measurement, **changes) for method in methods}
    scores = {}
    for name, run in runs.items():
        clock = time.monotonic()
        images = run()
        seconds = (time.monotonic() - clock) / len(images)
        scores[name] = summary(images, measurement.reference) | {"seconds_per_slice": round(seconds, 2)}
        Console(stderr=True).print(f"  {name}: {scores[name]}", highlight=False)
    scores["tv"]["strength"] = float(strength)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", help="file with the prior")
    parser.add_argument(
        "--volume", nargs="+", action="append", default=[], metavar=("PATH", "LOW HIGH"),
        help="NIfTI file and its intensity window; strengths for one are tuned on the others, so give two or more",
    )  # fmt: skip
    parser.add_argument("--slices", type=int, default=8, help="central slices of each volume")
    parser.add_argument("--tuning-slices", type=int, default=8, help="central slices that strengths are tuned on")
    parser.add_argument("--test-only", type=int, help="measure only on this many of the volumes, the first ones")
    parser.add_argument("--phantoms", type=int, default=16, help="held-out phantoms; 0 leaves them out")
    parser.add_argument("--methods", nargs="+", default=["dds", "d3ip"])
    parser.add_argument("--regimes", type=int, nargs="+", default=[0, 1, 2], help="of " + ", ".join(REGIMES))
    parser.add_argument("--output", type=Path, help="JSON file; rewritten after each comparison")
    arguments = parser.parse_args()
    if len(arguments.volume) == 1:
        parser.error("one volume: the strength of total variation must be tuned on another; give --volume twice")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_grad_enabled(False)

    network = load_prior(arguments.prior)
    size = network.config.image_size
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, network.in_channels, size, size), torch.zeros(1))
    report: dict[str, Any] = {
        "prior": Path(arguments.prior).name,
        "gflop": round(counter.get_total_flops() / 1e9, 2),  # a multiply-add counts as two
        "threads": torch.get_num_threads(),
        "loss": denoising_loss(network, held_out_phantoms(32, size)),
        "scores": {},
    }
    console = Console()
    console.print(f"{report['prior']}: {report['gflop']} GFLOP; loss {report['loss']}", highlight=False)
    regimes = [list(REGIMES.items())[index] for index in arguments.regimes]

    def record(where: str, scores: Scores) -> None:
        report["scores"][where] = scores
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(report, indent=1))
        table = Table("method", "PSNR", "SSIM", "s/slice", title=where)
        for name, row in scores.items():
            table.add_row(name, f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['seconds_per_slice']:.2f}")
        console.print(table)

    for regime, (angles, sigma_y) in regimes if arguments.phantoms else []:
        tuning = [measure(held_out_phantoms(4, size, seed=VALIDATION_SEED + 1), angles, sigma_y)]
        test = measure(held_out_phantoms(arguments.phantoms, size), angles, sigma_y)
        # Phantoms are independent images, so nothing may couple them.
        scores = compare(arguments.prior, ["dds"], test, tuning, slicewise_tv, **{"sampler.planes": "slices"})
        record(f"phantoms, {regime}", scores)

    volumes = {path: window for path, *window in arguments.volume}
    for path in list(volumes)[: arguments.test_only]:
        test_images = read(path, [float(v) for v in volumes[path]], arguments.slices, size)
        others = [
            read(o, [float(v) for v in w], arguments.tuning_slices, size) for o, w in volumes.items() if o != path
        ]
        for regime, (angles, sigma_y) in regimes:
            tuning = [measure(images, angles, sigma_y) for images in others]
            scores = compare(
                arguments.prior, arguments.methods, measure(test_images, angles, sigma_y), tuning, tv_reconstruction
            )
            record(f"{Path(path).name}, {regime}", scores)

    row = [report["prior"], *(f"{loss:.3g}" for loss in report["loss"].values())]
    row += [" / ".join(f"{s['psnr']:.2f}" for s in scores.values()) for scores in report["scores"].values()]
    heads = ["prior", *(f"t={t}" for t in report["loss"])]
    heads += [f"{where}: {' / '.join(scores)}" for where, scores in report["scores"].items()]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
