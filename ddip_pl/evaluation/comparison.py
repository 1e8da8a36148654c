"""Finished runs side by side: one table, and how they came to their results."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ddip_pl.errors import InputError

TABLE: dict[str, tuple[str, Callable[[float], str]]] = {  # heading and text of each figure
    "psnr": ("PSNR", "{:.2f} dB".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "lpips": ("LPIPS", "{:.3f}".format),
    "residual": ("residual", "{:.2e}".format),
    "discrepancy": ("||Ax-y||/noise", "{:.2f}".format),
    "seconds": ("time", "{:.1f} s".format),
    "peak_memory_bytes": ("memory", lambda size: f"{size / 1e9:.2f} GB"),
}
PANEL = 3.6  # inches


@dataclass
class Run:
    """One reconstructed volume, as its folder tells it.

    Attributes:
        label: method, and the folder of the run where several have the same.
        folder: of the volume.
        metrics: content of `metrics.json`, with the `volume`'s name.
        trajectory: rows of `trajectory.csv`; a figure that a row does not have is not in it.
        slices: rows of `slices.csv`; none without a reference.
    """

    label: str
    folder: Path
    metrics: dict[str, Any]
    trajectory: list[dict[str, float]]
    slices: list[dict[str, float]]

    @property
    def subject(self) -> tuple[str, str]:
        """Task and volume: what can be compared."""
        return self.metrics["task"], self.metrics["volume"]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All volumes below these folders, sorted by task and volume, otherwise in the order given.

    Raises:
        InputError: there is no finished volume in one of them, or its files cannot be read.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        paths = sorted(folder.rglob("metrics.json"))
        if not paths:
            raise InputError(f"run {folder}: no metrics.json in there; give folders that ddip-pl test or predict wrote")
        for path in paths:
            try:
                metrics = json.loads(path.read_text()) | {"volume": path.parent.name}
                slices = path.with_name("slices.csv")
                run = Run(metrics["method"], path.parent, metrics, read_table(path.with_name("trajectory.csv")),
                          read_table(slices) if slices.is_file() else [])  # fmt: skip
                run.subject  # noqa: B018 (is there)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(f"run {path.parent}: its files cannot be read ({error!r}); run it again") from error
            runs[path.resolve()] = run
    return label(sorted(runs.values(), key=lambda run: run.subject))


def label(runs: list[Run]) -> list[Run]:
    """The runs, where methods have the same name on the same task and volume with their folder behind it."""
    names = [(*run.subject, run.label) for run in runs]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            run.label = f"{run.label} ({run.folder.parent.name})"
    return runs


def read_table(path: Path) -> list[dict[str, float]]:
    """Rows of figures of a CSV file."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def tables(runs: Sequence[Run]) -> list[Table]:
    """For each task and volume a table of all figures that any of its runs has; the best PSNR and SSIM are bold."""
    views = []
    for subject, group in groupby(runs, key=lambda run: run.subject):
        rivals = list(group)
        shown = {name: how for name, how in TABLE.items() if any(name in run.metrics for run in rivals)}
        view = Table("method", title=", ".join(subject), title_justify="left", box=SIMPLE_HEAD)
        for heading, _ in shown.values():
            view.add_column(heading, justify="right", no_wrap=True)
        best = {n: max((run.metrics[n] for run in rivals if n in run.metrics), default=None) for n in ("psnr", "ssim")}
        if "input_psnr" in rivals[0].metrics:
            view.add_row("(input)", *(TABLE[name][1](rivals[0].metrics[f"input_{name}"]) for name in ("psnr", "ssim")))
        for run in rivals:
            cells = []
            for name, (_, form) in shown.items():
                value = run.metrics.get(name)
                cell = "" if value is None else form(value)
                cells.append(f"[bold]{cell}[/]" if len(rivals) > 1 and value == best.get(name, ...) else cell)
            view.add_row(run.label, *cells)
        views.append(view)
    return views


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """The table with all digits, and the folders."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "volume", "method", *TABLE, "folder"])
        for run in runs:
            figures = [run.metrics.get(name, "") for name in TABLE]
            writer.writerow([*run.subject, run.label, *figures, run.folder])


def draw(runs: Sequence[Run], path: Path) -> None:
    """One line of panels a task and volume: quality against time, residual along the trajectory, PSNR of each slice."""
    subjects = [(subject, list(group)) for subject, group in groupby(runs, key=lambda run: run.subject)]
    figure = Figure(figsize=(3.6 * PANEL, PANEL * len(subjects)), layout="constrained")
    lines = figure.subplots(len(subjects), 3, squeeze=False)
    for (subject, rivals), (quality, residual, slices) in zip(subjects, lines, strict=True):
        for run in rivals:
            if "psnr" in run.metrics:
                quality.plot(run.metrics["seconds"], run.metrics["psnr"], "o", label=run.label)
            steps = [row["step"] for row in run.trajectory if "residual" in row]
            shown = [row["residual"] for row in run.trajectory if "residual" in row]
            residual.plot(steps, shown, "o-" if len(shown) < 2 else "-", label=run.label)
            slices.plot([row["slice"] for row in run.slices], [row["psnr"] for row in run.slices], label=run.label)
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
