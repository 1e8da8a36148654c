"""Finished runs, as their folders tell of them."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddip_pl.errors import InputError


@dataclass
class Run:
    """One reconstructed volume.

    Attributes:
        folder: of the volume, `<run>/<volume>`.
        metrics: content of `metrics.json`.
        trajectory: rows of `trajectory.csv`; a figure that a row does not have is not in it.
        slices: rows of `slices.csv`; none without a reference.
    """

    folder: Path
    metrics: dict[str, Any]
    trajectory: list[dict[str, float]]
    slices: list[dict[str, float]]

    @property
    def subject(self) -> tuple[str, str]:
        """Task and volume: what can be compared."""
        return self.metrics["task"], self.folder.name

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.metrics["method"]


def finished(folder: Path) -> list[Path]:
    """Folders of the finished volumes in or below a folder; what is being written has a name that begins with a dot."""
    paths = (path.parent for path in folder.rglob("metrics.json"))
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def read_run(folder: Path) -> Run:
    """The run of one volume.

    Raises:
        InputError: its files cannot be read.
    """
    slices = folder / "slices.csv"
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        if not isinstance(metrics, dict) or not {"task", "method"} <= set(metrics):
            raise ValueError("metrics.json names no task and method")
        return Run(
            folder, metrics, read_table(folder / "trajectory.csv"), read_table(slices) if slices.is_file() else []
        )
    except (OSError, ValueError) as error:
        raise InputError(f"run {folder}: its files cannot be read ({error}); run it again") from error


def read_table(path: Path) -> list[dict[str, float]]:
    """Rows of figures of a CSV file."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
