"""Comparison of runs, as curves and as a gallery of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nibabel.nifti1 import Nifti1Image

from ddip_pl.results.folder import Run
from ddip_pl.results.tables import by_subject

PANEL = 3.6  # inches
WIDTH, ZOOM = 3.0, 0.3  # of a gallery panel, in inches; of the enlarged section, as a fraction of the image


def curves(runs: Sequence[Run], path: Path) -> None:
    """One row of panels per task and volume: quality against time, residual along the trajectory, PSNR by slice."""
    subjects = list(by_subject(runs))
    figure = Figure(figsize=(3.6 * PANEL, PANEL * len(subjects)), layout="constrained")
    lines = figure.subplots(len(subjects), 3, squeeze=False)
    for (subject, rivals), (quality, residual, slices) in zip(subjects, lines, strict=True):
        for label, run in rivals.items():
            if "psnr" in run.metrics:
                quality.plot(run.metrics["seconds"], run.metrics["psnr"], "o", label=label)
            steps = [row["step"] for row in run.trajectory if "residual" in row]
            shown = [row["residual"] for row in run.trajectory if "residual" in row]
            residual.plot(steps, shown, "o-" if len(shown) < 2 else "-", label=label)
            slices.plot([row["slice"] for row in run.slices], [row["psnr"] for row in run.slices], label=label)
        quality.set(title=" · ".join(subject), xlabel="seconds", ylabel="PSNR (dB)", xscale="log")
        residual.set(
            title="along the trajectory", xlabel="step or iteration", ylabel="||Ax - y|| / ||y||", yscale="log"
        )
        slices.set(title="slice by slice", xlabel="slice", ylabel="PSNR (dB)")
        residual.legend(fontsize=8, frameon=False)
        for ax in (quality, residual, slices):
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
            if not ax.lines or not any(len(line.get_xdata()) for line in ax.lines):
                ax.text(0.5, 0.5, "no reference", ha="center", transform=ax.transAxes)
                ax.set(xticks=[], yticks=[], xscale="linear")
    figure.savefig(path, dpi=110)


def gallery(rivals: Mapping[str, Run], path: Path) -> None:
    """One row per method: central slice with a section enlarged, cut across the slices, and error.

    Args:
        rivals: tests of one volume by method; some may cover only the central slices.
        path: image file to write.
    """
    volumes = {name: voxels(run.image) for name, run in rivals.items()}
    longest = max(volumes, key=lambda name: len(volumes[name]))
    reference = voxels(rivals[longest].reference)
    low, high = float(reference.min()), float(reference.max())
    panels = volumes | {"reference": reference}
    figure = Figure(figsize=(3 * WIDTH, len(panels) * WIDTH), layout="constrained")
    axes = figure.subplots(len(panels), 3, squeeze=False)
    for line, (name, volume) in zip(axes, panels.items(), strict=True):
        truth = reference[centre(len(reference), len(volume))]
        middle, across = volume[len(volume) // 2], volume[::-1, volume.shape[1] // 2]
        enlarged(line[0], middle, low, high)
        line[1].imshow(across, cmap="gray", vmin=low, vmax=high, aspect="auto")
        label = name
        if name in rivals:
            error = 5 * np.abs(middle - truth[len(truth) // 2])
            line[2].imshow(error, cmap="inferno", vmin=0, vmax=high - low)
            label += "\n{psnr:.2f} dB, {ssim:.3f}".format(**rivals[name].metrics)
        line[0].set_ylabel(label, fontsize=10)
        for ax in line:
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("central slice", "across the slices", "error x 5"), strict=True):
        ax.set_title(title, fontsize=10)
    axes[-1, 2].set_axis_off()
    figure.savefig(path, dpi=90)


def enlarged(ax: Any, image: np.ndarray, low: float, high: float) -> None:
    """An image, with a section from its middle enlarged in a corner."""
    ax.imshow(image, cmap="gray", vmin=low, vmax=high)
    rows, columns = (int(length * ZOOM) for length in image.shape)
    top, left = int(0.3 * image.shape[0]), int(0.35 * image.shape[1])
    ax.add_patch(Rectangle((left, top), columns, rows, fill=False, edgecolor="yellow"))
    inset = ax.inset_axes((0.52, 0.0, 0.48, 0.48))
    inset.imshow(image[top : top + rows, left : left + columns], cmap="gray", vmin=low, vmax=high)
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set_color("yellow")


def centre(length: int, count: int) -> slice:
    """The central `count` of `length` slices, as the data modules select them."""
    first = (length - count) // 2
    return slice(first, first + count)


def voxels(image: Nifti1Image | None) -> np.ndarray:
    """Volume `(slices, rows, columns)` of an image."""
    assert image is not None, "tests have a reference"
    return rearrange(np.asarray(image.dataobj), "x y z -> z y x")
