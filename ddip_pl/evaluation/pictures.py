"""Pictures of volumes: three planes of input, reconstruction, reference and error."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from einops import rearrange, repeat
from matplotlib.figure import Figure
from torch import Tensor

from ddip_pl.volumes.frame import magnitude

PLANES = ("sagittal", "coronal", "axial")
WIDTH, THINNEST = 2.8, 0.5  # width and smallest height of a panel, in inches


def planes(volume: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """Central cuts of `(slices, rows, columns)`: one slice, and two cuts across the slices.

    They have the radiological orientation, however the axes run: the patient's right is on the left, front and head are
    on top or on the left.
    """
    axes = affine[:3, 2::-1].T  # of slices, rows, columns
    turned = volume[tuple(slice(None, None, -1 if axis[np.abs(axis).argmax()] > 0 else 1) for axis in axes)]
    slices, rows, columns = (length // 2 for length in volume.shape)
    return [turned[slices], turned[:, rows], turned[:, :, columns]]


def tri_planar(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The central cuts of `(slices, rows, columns)` in [0, 1], one below the other, as 8-bit grey `(height, width)`.

    Slices are repeated so that the cuts across them have roughly the right proportions. See `planes` for the arguments.
    """
    width, _, thickness = np.linalg.norm(affine[:3, :3], axis=0)
    times = max(1, round(thickness / width))
    within, *across = planes(volume, affine)
    cuts = [within, *(repeat(cut, "slices w -> (slices times) w", times=times) for cut in across)]
    width = max(cut.shape[1] for cut in cuts)
    image = np.concatenate([np.pad(cut, ((0, 0), (0, width - cut.shape[1]))) for cut in cuts])
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def compare(
    images: Mapping[str, Tensor],
    reference: Tensor | None,
    metrics: Mapping[str, Mapping[str, float]],
    affine: np.ndarray,
    path: Path,
) -> None:
    """Save reconstructions of a volume side by side, with the reference and the error of the last one.

    Args:
        images: `(slices, channels, height, width)` in [0, 1] by name.
        reference: the true images, of the same shape.
        metrics: `psnr` and `ssim` of each reconstruction for its title; used only with a reference.
        affine: `(4, 4)`, from (column, row, slice) to scanner coordinates in mm.
        path: image file to write.
    """
    panels = {name: grey(image).clip(0, 1) for name, image in images.items()}
    headings = dict.fromkeys(panels, "")
    if reference is not None:
        headings = {name: "\n{psnr:.2f} dB, SSIM {ssim:.3f}".format(**metrics[name]) for name in panels}
        last = list(panels)[-1]
        panels["reference"] = grey(reference)
        error = f"error of {last} x 5"
        panels[error] = 5 * np.abs(panels[last] - panels["reference"])
        headings |= {"reference": "", error: ""}

    dx, dy, dz = np.linalg.norm(affine[:3, :3], axis=0)
    column_plane, row_plane, slice_plane = (PLANES[axis] for axis in np.abs(affine[:3, :3]).argmax(axis=0))
    slices, rows, columns = next(iter(panels.values())).shape
    cuts = [(slice_plane, columns * dx, rows * dy), (row_plane, columns * dx, slices * dz),
            (column_plane, rows * dy, slices * dz)]  # fmt: skip
    heights = [max(WIDTH * h / w, THINNEST) for _, w, h in cuts]
    figure = Figure(figsize=(WIDTH * len(panels), sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(3, len(panels), squeeze=False, height_ratios=heights)
    for column, (name, volume) in enumerate(panels.items()):
        for row, (cut, (plane, _, _)) in enumerate(zip(planes(volume, affine), cuts, strict=True)):
            ax = axes[row, column]
            colours = "inferno" if name.startswith("error") else "gray"
            ax.imshow(cut, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if column == 0:
                ax.set_ylabel(plane, fontsize=8)
        axes[0, column].set_title(name + headings[name], fontsize=9)
    figure.savefig(path, dpi=110)


def grey(images: Tensor) -> np.ndarray:
    """Images `(slices, channels, height, width)` as grey values `(slices, height, width)`, magnitude if complex."""
    return rearrange(magnitude(images).numpy(force=True), "s 1 h w -> s h w")
