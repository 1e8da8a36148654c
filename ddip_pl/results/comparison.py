"""Finished runs side by side: one table, and how they came to their results."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ddip_pl.errors import InputError
from ddip_pl.results.runs import Run, finished, read_run

TABLE: dict[str, tuple[str, Callable[[float], str]]] = {  # heading and text of each figure
    "slices": ("slices", "{:.0f}".format),
    "psnr": ("PSNR", "{:.2f} dB".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "lpips": ("LPIPS", "{:.3f}".format),
    "residual": ("residual", "{:.2e}".format),
    "discrepancy": ("discrepancy", "{:.2f}".format),
    "seconds": ("time", "{:.1f} s".format),
    "peak_memory_bytes": ("memory", lambda size: f"{size / 1e9:.2f} GB"),
}
PANEL = 3.6  # inches


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All volumes in and below these folders, none twice, sorted by task and volume, otherwise in the order given.

    Raises:
        InputError: there is no finished volume in one of them, or its files cannot be read.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        paths = finished(folder)
        if not paths:
            raise InputError(f"run {folder}: no metrics.json in there; give folders that ddip-pl test or predict wrote")
        runs |= {path.resolve(): read_run(path) for path in paths}
    return sorted(runs.values(), key=lambda run: run.subject)


def by_subject(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], dict[str, Run]]]:
    """Runs of each task and volume by method, with the run's folder behind it where several have the same."""
    for subject, group in groupby(runs, key=lambda run: run.subject):
        rivals = list(group)
        methods = [run.method for run in rivals]
        yield (
            subject,
            {
                run.method if methods.count(run.method) == 1 else f"{run.method} ({run.folder.parent})": run
                for run in rivals
            },
        )


def tables(runs: Sequence[Run]) -> list[Table]:
    """For each task and volume a table of what its runs have, one line each; the best PSNR and SSIM are bold."""
    views = []
    for subject, rivals in by_subject(runs):
        figures = [run.metrics for run in rivals.values()]
        shown = {name: how for name, how in TABLE.items() if any(name in metrics for metrics in figures)}
        if len({metrics.get("slices") for metrics in figures}) == 1:
            shown.pop("slices", None)
        if "discrepancy" in shown:  # tells more than the residual, which is in the CSV
            shown.pop("residual", None)
        view = Table(title=", ".join(subject), title_justify="left", box=SIMPLE_HEAD)
        view.add_column("method", overflow="fold", min_width=14)
        for heading, _ in shown.values():
            view.add_column(heading, justify="right", no_wrap=True)
        best = {name: max((m[name] for m in figures if name in m), default=None) for name in ("psnr", "ssim")}
        if "input_psnr" in figures[0]:
            first = {"slices": figures[0]["slices"]} if "slices" in shown else {}
            first |= {name: figures[0][f"input_{name}"] for name in ("psnr", "ssim")}
            view.add_row("(input)", *(TABLE[name][1](value) for name, value in first.items()))
        for label, run in rivals.items():
            cells = []
            for name, (_, form) in shown.items():
                value = run.metrics.get(name)
                cell = "" if value is None else form(value)
                cells.append(f"[bold]{cell}[/]" if len(rivals) > 1 and value == best.get(name, ...) else cell)
            view.add_row(label, *cells)
        views.append(view)
    return views


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """The table with all digits, and the folders."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "volume", "method", *TABLE, "folder"])
        for subject, rivals in by_subject(runs):
            for label, run in rivals.items():
                writer.writerow([*subject, label, *(run.metrics.get(name, "") for name in TABLE), run.folder])


def draw(runs: Sequence[Run], path: Path) -> None:
    """One line of panels a task and volume: quality against time, residual along the trajectory, PSNR of each slice."""
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
