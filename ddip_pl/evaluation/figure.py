"""The figure of a volume: three planes of input, reconstruction, reference and error."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ddip_pl.evaluation.metrics import magnitude, summary

PLANES = ("in plane", "across, rows", "across, columns")


def planes(volume: np.ndarray) -> list[np.ndarray]:
    """Central cuts of `(slices, rows, columns)`: a slice, and the two across the slices."""
    slices, rows, columns = (length // 2 for length in volume.shape)
    return [volume[slices], volume[::-1, rows], volume[::-1, :, columns]]


def compare(
    images: Mapping[str, Tensor], reference: Tensor | None, voxel_size: tuple[float, float, float], path: Path,
    titles: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Save reconstructions of a volume side by side, with the reference and the error of the last one.

    Args:
        images: `(slices, channels, height, width)` in [0, 1] by name.
        reference: the truth, of the same shape; figures of merit are added to the titles.
        voxel_size: mm along columns, rows and slices.
        path: image file to write.
        titles: more lines for the titles, by name.
    """
    panels = {name: magnitude(image)[:, 0].clamp(0, 1).cpu().numpy() for name, image in images.items()}
    headings = dict.fromkeys(panels, "")
    if reference is not None:
        for name, image in images.items():
            headings[name] = "\n{psnr:.2f} dB, SSIM {ssim:.3f}".format(**summary(image, reference))
        last = list(panels)[-1]
        panels["reference"] = magnitude(reference)[:, 0].cpu().numpy()
        error = f"error of {last} x 5"
        panels[error] = 5 * np.abs(panels[last] - panels["reference"])
        headings |= {"reference": "", error: ""}
    for name, line in (titles or {}).items():
        headings[name] += f"\n{line}"

    dx, dy, dz = voxel_size
    slices, rows, columns = next(iter(panels.values())).shape
    extents = [(columns * dx, rows * dy), (columns * dx, slices * dz), (rows * dy, slices * dz)]
    width = 2.8
    heights = [width * h / w for w, h in extents]
    figure = Figure(figsize=(width * len(panels), sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(3, len(panels), squeeze=False, height_ratios=heights)
    for column, (name, volume) in enumerate(panels.items()):
        for row, (cut, (w, h)) in enumerate(zip(planes(volume), extents, strict=True)):
            ax = axes[row, column]
            colours = "inferno" if name.startswith("error") else "gray"
            ax.imshow(cut, cmap=colours, vmin=0, vmax=1, extent=(0, w, 0, h), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if column == 0:
                ax.set_ylabel(PLANES[row], fontsize=8)
        axes[0, column].set_title(name + headings[name], fontsize=9)
    figure.savefig(path, dpi=110)
