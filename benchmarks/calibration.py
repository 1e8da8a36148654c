"""How far the standard deviation of posterior samples can be trusted, on images whose truth is known.

For one task, prints how often the truth is within one and two standard deviations of the reconstruction, and a
reliability table: voxels sorted by their standard deviation, with the error that they have. Without a volume, the
images are random ellipses like those that the prior was trained on.

    python benchmarks/calibration.py
    python benchmarks/calibration.py ct_thorax.nii.gz --window -1000 1000 --picture calibration.png
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch.utils.data import default_collate

from ddip_pl import Measurement, ParallelBeamCT, PoissonDisc, Sampler, SingleCoilMRI, load_method
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.estimators import DDS
from ddip_pl.physics.measurement import simulate
from ddip_pl.prior.phantoms import RandomEllipses, images_of
from ddip_pl.reconstruction.module import SHIPPED_SIZE
from ddip_pl.results.result import Result

TASKS = {  # operator and sigma_y, as in configs/task
    "sv_ct": (partial(ParallelBeamCT, angles=60), 2e-4),
    "sv_ct_noisy": (partial(ParallelBeamCT, angles=30), 1e-2),
    "mri_3d": (partial(SingleCoilMRI, mask=PoissonDisc(acceleration=8, centre=0.08)), 1e-2),
}
BACKGROUND = 0.02  # voxels up to this intensity, where the truth is 0 almost everywhere, are left out
BINS = 5
GAIN = 5  # of errors and deviations in the picture


def measure(args: argparse.Namespace) -> Measurement:
    """The measurement of the volume or of phantoms, with its reference."""
    operator, sigma_y = TASKS[args.task]
    torch.manual_seed(args.seed)
    if args.volume is not None:
        data = VolumeDataModule(args.volume, operator, sigma_y, slices=args.slices, window=args.window)
        return data.simulate(SHIPPED_SIZE).measurement
    ellipses = RandomEllipses(args.slices, args.seed, "wide")
    x = images_of(default_collate([ellipses[i] for i in range(args.slices)]), SHIPPED_SIZE, 1)
    A = operator((args.slices, SHIPPED_SIZE, SHIPPED_SIZE))
    return Measurement(simulate(x, A, sigma_y), A, sigma_y, x)


def report(result: Result, samples: int) -> None:
    """Print the tables."""
    reference, deviation = result.reference, result.standard_deviation
    inside = reference > BACKGROUND
    error, deviation = (result.volume - reference)[inside].abs().numpy(), deviation[inside].numpy()
    rms = [float(np.sqrt(np.mean(values**2))) for values in (error, deviation)]
    # The mean of n exact samples is off by sqrt(1 + 1 / n) standard deviations, which are themselves estimated.
    exact = [2 * student.cdf(k / (1 + 1 / samples) ** 0.5, samples - 1) - 1 for k in (1, 2)]
    within = [float(np.mean(error <= k * deviation)) for k in (1, 2)]
    print(f"PSNR {result.metrics()['psnr']:.2f} dB, discrepancy {result.metrics()['discrepancy']:.2f}")
    print(f"error {rms[0]:.4f}, standard deviation {rms[1]:.4f} (root mean squares): ratio {rms[1] / rms[0]:.2f}")
    print(f"  exact samples: ratio {(1 + 1 / samples) ** -0.5:.2f}")
    print(f"within 1 standard deviation {within[0]:.0%}, within 2 {within[1]:.0%}")
    print(f"  exact samples: {exact[0]:.0%}, {exact[1]:.0%}")
    print(f"correlation of the absolute error with the standard deviation: {np.corrcoef(error, deviation)[0, 1]:.2f}")
    print(f"null-space energy {result.uncertainty['null_space_energy']:.4f}\n")
    print("fifth of the voxels, by deviation   deviation   absolute error   root mean square error")
    for number, part in enumerate(np.array_split(deviation.argsort(), BINS), 1):
        spread, off = deviation[part], error[part]
        print(f"{number:>33} {spread.mean():>11.4f} {off.mean():>16.4f} {np.sqrt((off**2).mean()):>24.4f}")


def draw(result: Result, path: Path) -> None:
    """Truth, reconstruction, error, deviation and null-space part of the central slice."""
    middle = len(result.images) // 2
    images = [result.reference, result.volume, (result.volume - result.reference).abs(), result.standard_deviation]
    images = [image[middle, 0] for image in (*images, result.null_space)]
    titles = ("truth", "mean of the samples", f"error x {GAIN}", f"standard deviation x {GAIN}", f"null space x {GAIN}")
    colours, lowest = ("gray", "gray", "inferno", "inferno", "RdBu_r"), (0, 0, 0, 0, -1 / GAIN)
    figure = Figure(figsize=(2.6 * len(images), 2.9), layout="constrained")
    for axis, image, title, colour, low in zip(
        figure.subplots(1, len(images)), images, titles, colours, lowest, strict=True
    ):
        axis.imshow(image, cmap=colour, vmin=low, vmax=1 if colour == "gray" else 1 / GAIN)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, nargs="?")
    parser.add_argument("--task", choices=TASKS, default="sv_ct")
    parser.add_argument("--method", default="dds")
    parser.add_argument("--slices", type=int, default=3, help="central slices of the volume, or number of phantoms")
    parser.add_argument("--window", type=float, nargs=2, help="intensities that become 0 and 1")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="sampling steps of a trajectory")
    parser.add_argument("--eta", type=float, default=Sampler.posterior().eta)
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    measurement = measure(args)
    changes = {"samples": args.samples, "sampler.steps": args.steps, "sampler.eta": args.eta}
    method = load_method(args.method, estimator=DDS.posterior(), sampler=Sampler.posterior(), **changes)
    torch.manual_seed(args.seed)
    result = method.reconstruct(measurement)
    report(result, args.samples)
    if args.picture is not None:
        draw(result, args.picture)


if __name__ == "__main__":
    main()
