"""Reconstruct one slice of measured k-space by CG-SENSE, L1-wavelet and DDS; print metrics, save a picture."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = {"CG-SENSE (start)": "fbp", "L1-wavelet": "l1_wavelet", "DDS": "dds"}
BRIGHT = 98  # percentile of the pixels that is shown as white


def predict(kspace: Path, method: str, output: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Magnitude `(rows, columns)` of the first slice, and the metrics of the run; a finished run is not repeated."""
    folder = output / method / kspace.stem
    if not (folder / "metrics.json").exists():
        configs = (f"--config={CONFIGS}/{name}.yaml" for name in ("task/measured", f"method/{method}"))
        given = (*configs, f"--data.path={kspace}", f"--output={output / method}")
        subprocess.run([sys.executable, "-m", "ddip_pl.cli", "predict", *given], check=True)
    image = nib.load(folder / "reconstruction.nii.gz").get_fdata()[..., 0].T
    return image, json.loads((folder / "metrics.json").read_text())


def square(row: int, column: int, size: int) -> tuple[slice, slice]:
    return slice(row, row + size), slice(column, column + size)


def draw(images: dict[str, np.ndarray], part: tuple[slice, slice], path: Path) -> None:
    """Save all images in the window of the first one, with a part of each enlarged below it."""
    white = np.percentile(images[next(iter(images))], BRIGHT)
    rows, columns = next(iter(images.values())).shape
    figure = Figure(figsize=(2.4 * len(images), 2.4 * (rows / columns + 1) + 0.5), layout="constrained")
    axes = figure.subplots(2, len(images), height_ratios=(rows / columns, 1))
    for column, (name, image) in enumerate(images.items()):
        axes[0, column].set_title(name, fontsize=9)
        for axis, shown in zip(axes[:, column], (image, image[part]), strict=True):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kspace", type=Path, help="file that ddip-pl predict reads; its first slice is shown")
    parser.add_argument("--output", type=Path, default=Path("outputs/kspace_8coil"), help="for the runs")
    parser.add_argument("--picture", type=Path, default=Path("docs/results/kspace_8coil.png"))
    place = {"type": int, "nargs": 3, "metavar": ("ROW", "COLUMN", "SIZE")}
    parser.add_argument("--patch", **place, default=(98, 74, 8), help="homogeneous tissue, to measure the noise")
    parser.add_argument("--enlarge", **place, default=(62, 60, 60), help="part to enlarge")
    args = parser.parse_args()

    runs = {name: predict(args.kspace, method, args.output) for name, method in METHODS.items()}
    for name, (image, metrics) in runs.items():
        patch = image[square(*args.patch)]
        print(
            f"{name:18} discrepancy {metrics['discrepancy']:.2f}, residual {metrics['residual']:.3f}, "
            f"std / mean of the patch {patch.std() / patch.mean():.3f}, {metrics['seconds']:.0f} s"
        )
    print(f"sigma_y {metrics['sigma_y']:.4f}")
    draw({name: image for name, (image, _) in runs.items()}, square(*args.enlarge), args.picture)


if __name__ == "__main__":
    main()
