"""The contents of a report, and its HTML page."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.processing import resample_from_to

from ddip_pl.report.pack import coarsen, pack

BUDGET = 15_000_000  # size of a page, in bytes
COARSEST = 64  # most voxels along an axis to average


@dataclass
class Shown:
    """One reconstruction of a volume.

    Attributes:
        name: of the method.
        image: the volume, with axes columns, rows, slices.
        metrics: figures of merit, cost and origin, including the `units` of the voxels.
        slices: figures of merit of each slice, with its number as `slice`.
        trajectory: figures of each step, with its number as `step`.
        config: settings, YAML.
        maps: of its uncertainty by name, in units of the volume: `standard_deviation` and `null_space`.
    """

    name: str
    image: Nifti1Image
    metrics: dict[str, Any] = field(default_factory=dict)
    slices: list[dict[str, float]] = field(default_factory=list)
    trajectory: list[dict[str, float]] = field(default_factory=list)
    config: str = ""
    maps: dict[str, Nifti1Image] = field(default_factory=dict)


@dataclass
class Case:
    """Reconstructions of one volume in one task, shown side by side.

    Attributes:
        task: name of the task.
        volume: name of the volume.
        runs: reconstructions; the last one is selected when the page opens.
        reference: the true volume, if known.
    """

    task: str
    volume: str
    runs: list[Shown]
    reference: Nifti1Image | None = None


def write_page(path: Path, title: str, cases: Sequence[Case]) -> None:
    """Write the page, with volumes as fine as the size limit of a page allows.

    Args:
        path: HTML file to write.
        title: heading of the page.
        cases: the volumes to choose from; the first is shown when the page opens.
    """
    folder = files("ddip_pl.report")
    parts = {name: (folder / name).read_text() for name in ("page.html", "style.css", "viewer.js", "tools.js")}
    factor = 1
    while True:
        data = json.dumps(plain([as_json(case, factor) for case in cases]), allow_nan=False)
        page = Template(parts["page.html"]).substitute(
            title=html.escape(title), style=parts["style.css"], script=parts["viewer.js"], tools=parts["tools.js"],
            data=data.replace("<", "\\u003c"),
        )  # fmt: skip
        if len(page) <= BUDGET or factor >= COARSEST:
            break
        factor = max(factor + 1, math.floor(factor * (len(page) / BUDGET) ** (1 / 3)))
    path.write_text(page, encoding="utf-8")


def as_json(case: Case, factor: int) -> dict[str, Any]:
    """A case for the viewer: all volumes on one RAS+ grid, taken from the reference or the run with the most slices."""
    template = case.reference or max((run.image for run in case.runs), key=lambda image: image.shape[2])
    grid = nib.as_closest_canonical(template)  # type: ignore[attr-defined]
    shape = [-(-length // factor) for length in grid.shape]
    to_fine = np.diag([factor, factor, factor, 1.0])
    to_fine[:3, 3] = (factor - 1) / 2
    axis, _ = nib.io_orientation(template.affine)[2]  # type: ignore[attr-defined]

    def packed(image: Nifti1Image) -> dict[str, Any]:
        return pack(coarsen(on_grid(image, grid), factor))

    return {
        "task": case.task,
        "volume": case.volume,
        "units": case.runs[-1].metrics.get("units", ""),
        "shape": shape,
        "affine": (grid.affine @ to_fine).tolist(),
        "window": display_window(case),
        "factor": factor,
        "axis": int(axis),
        "runs": [
            {
                "name": run.name, "metrics": run.metrics, "trajectory": run.trajectory, "config": run.config,
                "slices": places(run, grid, int(axis), factor), **packed(run.image),
                "maps": {name: packed(image) for name, image in run.maps.items()},
            }
            for run in case.runs
        ],
        "reference": case.reference and packed(case.reference),
    }  # fmt: skip


def display_window(case: Case) -> list[float]:
    """Values for black and white: the range of the reference or, without one, of the last run without outliers."""
    shown = np.asarray((case.reference or case.runs[-1].image).dataobj)
    shown = shown[np.isfinite(shown)]
    return np.percentile(shown, (0, 100) if case.reference else (0.1, 99.9)).tolist() if shown.size else [0.0, 1.0]


def on_grid(image: Nifti1Image, grid: Nifti1Image) -> np.ndarray:
    """Voxels of an image on another grid by nearest neighbour, NaN outside."""
    moved = resample_from_to(image, (grid.shape, grid.affine), order=0, mode="grid-constant", cval=np.nan)
    return np.asarray(moved.dataobj, dtype=np.float32)


def places(run: Shown, grid: Nifti1Image, axis: int, factor: int) -> list[dict[str, float]]:
    """Figures of each slice, with its index on the grid as `place`."""
    step, first = (np.linalg.inv(grid.affine) @ run.image.affine)[axis, 2:]
    return [row | {"place": round(first + step * row["slice"]) // factor} for row in run.slices]


def plain(value: Any) -> Any:
    """The same with infinity and NaN as text, since JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
