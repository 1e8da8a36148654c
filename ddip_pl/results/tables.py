"""Comparison of runs, as text, Markdown and CSV."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ddip_pl.errors import InputError
from ddip_pl.results.folder import Run, finished, read_run

TABLE: dict[str, tuple[str, Callable[[float], str]]] = {  # heading and format of each metric
    "slices": ("slices", "{:.0f}".format),
    "psnr": ("PSNR", "{:.2f} dB".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "lpips": ("LPIPS", "{:.3f}".format),
    "residual": ("residual", "{:.2e}".format),
    "discrepancy": ("discrepancy", "{:.2f}".format),
    "seconds": ("time", "{:.1f} s".format),
    "peak_memory_bytes": ("memory", lambda size: f"{size / 1e9:.2f} GB"),
}
COLUMNS = (
    "psnr", "ssim", "lpips", "input_psnr", "residual", "discrepancy", "seconds", "slices", "adapted_parameters",
    "peak_memory_bytes", "device",
)  # fmt: skip


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All volumes in and below these folders without duplicates, sorted by task and volume, then in the given order.

    Raises:
        InputError: a folder has no finished volume, or its files cannot be read.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        paths = finished(folder)
        if not paths:
            raise InputError(f"run {folder}: no metrics.json in it; give folders written by ddip-pl test or predict")
        runs |= {path.resolve(): read_run(path) for path in paths}
    return sorted(runs.values(), key=lambda run: run.subject)


def read_tests(folder: Path, methods: Sequence[str]) -> list[Run]:
    """All volumes in or below a folder that have a reference, sorted by task and volume, then method.

    Args:
        folder: to search.
        methods: names of methods in the wanted order; others follow.
    """
    runs = [run for run in map(read_run, finished(folder)) if "psnr" in run.metrics]
    order = {method: place for place, method in enumerate(methods)}
    return sorted(runs, key=lambda run: (run.subject, order.get(run.method, len(order))))


def by_subject(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], dict[str, Run]]]:
    """Runs of each task and volume by method; runs with the same method are labelled with their folder too."""
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
    """For each task and volume a table of its runs, one row per run; the best PSNR and SSIM are bold."""
    views = []
    for subject, rivals in by_subject(runs):
        metrics = [run.metrics for run in rivals.values()]
        shown = {name: how for name, how in TABLE.items() if any(name in m for m in metrics)}
        if len({m.get("slices") for m in metrics}) == 1:
            shown.pop("slices", None)
        if "discrepancy" in shown:  # more informative than the residual, which is still in the CSV
            shown.pop("residual", None)
        view = Table(title=", ".join(subject), title_justify="left", box=SIMPLE_HEAD)
        view.add_column("method", overflow="fold", min_width=14)
        for heading, _ in shown.values():
            view.add_column(heading, justify="right", no_wrap=True)
        best = {name: max((m[name] for m in metrics if name in m), default=None) for name in ("psnr", "ssim")}
        if "input_psnr" in metrics[0]:
            first = {"slices": metrics[0]["slices"]} if "slices" in shown else {}
            first |= {name: metrics[0][f"input_{name}"] for name in ("psnr", "ssim")}
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


def markdown(rivals: Mapping[str, Run]) -> str:
    """Tests of one volume as a Markdown table like the paper's Table 2; the best PSNR and SSIM are bold."""
    best = {name: max(run.metrics[name] for run in rivals.values()) for name in ("psnr", "ssim")}
    lines = [
        "| method | PSNR (dB) | SSIM | LPIPS | slices | seconds per slice | adapted parameters | peak memory (GB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, run in rivals.items():
        metrics = run.metrics
        psnr, ssim = f"{metrics['psnr']:.2f}", f"{metrics['ssim']:.3f}"
        cells = [
            label,
            f"**{psnr}**" if metrics["psnr"] == best["psnr"] else psnr,
            f"**{ssim}**" if metrics["ssim"] == best["ssim"] else ssim,
            f"{metrics['lpips']:.3f}" if "lpips" in metrics else "-",
            str(metrics["slices"]),
            f"{metrics['seconds'] / metrics['slices']:.2f}",
            f"{metrics['adapted_parameters']:,}",
            f"{metrics['peak_memory_bytes'] / 1e9:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write the metrics of all runs at full precision, and their folders."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "volume", "method", *COLUMNS, "folder"])
        for subject, rivals in by_subject(runs):
            for label, run in rivals.items():
                writer.writerow([*subject, label, *(run.metrics.get(name, "") for name in COLUMNS), run.folder])
