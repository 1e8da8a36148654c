"""Table, CSV and figures of all runs that lie in a folder."""

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ddip_pl.results.runs import finished, read_run

COLUMNS = (
    "task", "volume", "method", "psnr", "ssim", "lpips", "input_psnr", "residual", "seconds", "slices",
    "adapted_parameters", "peak_memory_bytes", "device",
)  # fmt: skip
WIDTH, ZOOM = 3.0, 0.3  # of a panel, in inches; of an inset's section, as a share of the image


def read_tests(folder: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of all finished tests below a folder, by task and volume, methods in the given order, then others."""
    runs = [read_run(path).metrics | {"volume": path.name, "folder": path} for path in finished(folder)]
    runs = [run for run in runs if "psnr" in run]
    order = {method: place for place, method in enumerate(methods)}
    return sorted(runs, key=lambda run: (run["task"], run["volume"], order.get(run["method"], len(order))))


def write_tables(folder: Path, methods: Sequence[str] = ()) -> None:
    """Write `benchmark.csv`, `benchmark.md` and a figure for each task and volume; methods come in the given order."""
    runs = read_tests(folder, methods)
    if not runs:
        return
    with (folder / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(runs)
    sections = []
    for (task, volume), group in groupby(runs, key=lambda run: (run["task"], run["volume"])):
        rows = list(group)
        sections.append(f"## {task}, {volume}\n\n{markdown(rows)}\n\n![]({task}-{volume}.png)\n")
        gallery({row["method"]: row["folder"] for row in rows}, rows, folder / f"{task}-{volume}.png")
    (folder / "benchmark.md").write_text("\n".join(sections))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table like the paper's Table 2; the best PSNR and SSIM are bold."""
    best = {name: max(row[name] for row in rows) for name in ("psnr", "ssim")}
    lines = [
        "| method | PSNR (dB) | SSIM | LPIPS | slices | seconds a slice | adapted parameters | peak memory (GB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        psnr, ssim = f"{row['psnr']:.2f}", f"{row['ssim']:.3f}"
        cells = [
            row["method"],
            f"**{psnr}**" if row["psnr"] == best["psnr"] else psnr,
            f"**{ssim}**" if row["ssim"] == best["ssim"] else ssim,
            f"{row['lpips']:.3f}" if "lpips" in row else "-",
            str(row["slices"]),
            f"{row['seconds'] / row['slices']:.2f}",
            f"{row['adapted_parameters']:,}",
            f"{row['peak_memory_bytes'] / 1e9:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gallery(folders: Mapping[str, Path], rows: list[dict[str, Any]], path: Path) -> None:
    """One row a method: central slice with a section enlarged, the cut across the slices, and the error."""
    volumes = {name: read(folder / "reconstruction.nii.gz") for name, folder in folders.items()}
    longest = max(volumes, key=lambda name: len(volumes[name]))
    reference = read(folders[longest] / "reference.nii.gz")
    low, high = float(reference.min()), float(reference.max())
    panels = volumes | {"reference": reference}
    figure = Figure(figsize=(3 * WIDTH, len(panels) * WIDTH), layout="constrained")
    axes = figure.subplots(len(panels), 3, squeeze=False)
    for line, (name, volume) in zip(axes, panels.items(), strict=True):
        truth = reference[centre(len(reference), len(volume))]
        middle, across = volume[len(volume) // 2], volume[::-1, volume.shape[1] // 2]
        enlarged(line[0], middle, low, high)
        line[1].imshow(across, cmap="gray", vmin=low, vmax=high, aspect="auto")
        if name != "reference":
            error = 5 * np.abs(middle - truth[len(truth) // 2])
            line[2].imshow(error, cmap="inferno", vmin=0, vmax=high - low)
        row = next((row for row in rows if row["method"] == name), None)
        line[0].set_ylabel(name if row is None else f"{name}\n{row['psnr']:.2f} dB, {row['ssim']:.3f}", fontsize=10)
        for ax in line:
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("central slice", "across the slices", "error x 5"), strict=True):
        ax.set_title(title, fontsize=10)
    axes[-1, 2].set_axis_off()
    figure.savefig(path, dpi=90)


def enlarged(ax: Any, image: np.ndarray, low: float, high: float) -> None:
    """An image, with a section from its middle twice as large in a corner."""
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
    """The central `count` of `length` slices, as the data module takes them."""
    first = (length - count) // 2
    return slice(first, first + count)


def read(path: Path) -> np.ndarray:
    """Volume `(slices, rows, columns)` from a file as the writer leaves it."""
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
