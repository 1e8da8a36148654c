"""The folder of a reconstructed volume, `<run>/<volume>/`: its files and their names."""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import torch
from einops import rearrange
from nibabel.nifti1 import Nifti1Extension, Nifti1Image
from torch import Tensor

from ddip_pl.errors import InputError, reason
from ddip_pl.report.page import Case, Shown, plain
from ddip_pl.results.provenance import lines
from ddip_pl.volumes.frame import Frame

METRICS, SLICES, TRAJECTORY, CONFIG = "metrics.json", "slices.csv", "trajectory.csv", "config.yaml"
RECONSTRUCTION, REFERENCE = "reconstruction.nii.gz", "reference.nii.gz"
DEVIATION, NULL_SPACE = "standard_deviation", "null_space"
HDF5, DICOM = "reconstruction.h5", "dicom"
LORA, WEIGHTS = "lora", "weights.safetensors"
PLANES, PAGE = "figures/planes.png", "report.html"
MAPS = {name: f"{name}.nii.gz" for name in (DEVIATION, NULL_SPACE)}
RECORD = (METRICS, SLICES, TRAJECTORY, CONFIG, REFERENCE, *MAPS.values())  # what `write_run` writes

UNFINISHED = ".unfinished-"  # begins the names of folders that are still being written

LONGEST_DESCRIPTION = 79  # bytes, of a NIfTI file

NOT_FINITE = ("inf", "-inf", "nan")  # numbers that JSON lacks, as `plain` writes them


@dataclass(frozen=True)
class Run:
    """A reconstructed volume, read from its folder.

    Attributes:
        folder: of the volume.
        metrics: figures of merit, cost and origin.
        trajectory: figures of each step; a step may lack some.
        slices: figures of merit of each slice; empty without a reference.
    """

    folder: Path
    metrics: dict[str, Any]
    trajectory: list[dict[str, float]]
    slices: list[dict[str, float]]

    @property
    def subject(self) -> tuple[str, str]:
        """Task and volume; runs that share both can be compared."""
        return self.metrics["task"], self.folder.name

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.metrics["method"]

    @property
    def image(self) -> Nifti1Image:
        """The reconstruction."""
        return Nifti1Image.from_filename(self.folder / RECONSTRUCTION)

    @property
    def maps(self) -> dict[str, Nifti1Image]:
        """Maps of the uncertainty by name; empty if there was only one sample."""
        paths = {name: self.folder / file for name, file in MAPS.items()}
        return {name: Nifti1Image.from_filename(path) for name, path in paths.items() if path.is_file()}

    @property
    def reference(self) -> Nifti1Image | None:
        """The reference volume, if there is one."""
        path = self.folder / REFERENCE
        return Nifti1Image.from_filename(path) if path.is_file() else None


def finished(folder: Path) -> list[Path]:
    """Folders of all finished volumes in or below a folder. The names of unfinished ones begin with a dot."""
    paths = (path.parent for path in folder.rglob(METRICS))
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def has_result(folder: Path, origin: Mapping[str, str]) -> bool:
    """Whether a folder has a result of these settings and this input, by their hashes."""
    try:
        provenance = json.loads((folder / METRICS).read_text())["provenance"]
        return origin.items() <= provenance.items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def read_run(folder: Path) -> Run:
    """Read the folder of a volume.

    Raises:
        InputError: its files cannot be read.
    """
    try:
        metrics = json.loads((folder / METRICS).read_text())
        if not isinstance(metrics, dict) or not {"task", "method"} <= set(metrics):
            raise ValueError(f"{METRICS} has no task or no method")
        names = {name: metrics.pop(name) for name in ("task", "method")}
        figures = {name: float(value) if value in NOT_FINITE else value for name, value in metrics.items()}
        slices = folder / SLICES
        return Run(
            folder, names | figures, read_table(folder / TRAJECTORY), read_table(slices) if slices.is_file() else []
        )
    except (OSError, ValueError) as error:
        raise InputError(f"run {folder}: its files cannot be read ({error}); run it again") from error


def read_case(runs: Sequence[Run]) -> Case:
    """Runs of one task and volume for a page, with the reference of the run that has the most slices."""
    shown = [
        Shown(
            run.method, run.image, run.metrics, run.slices, run.trajectory, (run.folder / CONFIG).read_text(), run.maps
        )
        for run in runs
    ]
    longest = max(range(len(runs)), key=lambda i: shown[i].image.shape[2])
    return Case(*runs[0].subject, shown, runs[longest].reference)


def write_run(folder: Path, shown: Shown, reference: Nifti1Image | None) -> None:
    """Write everything that `read_run` and `read_case` read, except the volume, to an existing folder."""
    (folder / METRICS).write_text(json.dumps(plain(shown.metrics), indent=2, allow_nan=False) + "\n")
    (folder / CONFIG).write_text(shown.config)
    write_table(folder / TRAJECTORY, shown.trajectory)
    provenance = shown.metrics.get("provenance", {})
    for name, image in shown.maps.items():
        save_nifti(image, folder / MAPS[name], provenance)
    if reference is not None:
        write_table(folder / SLICES, shown.slices)
        save_nifti(reference, folder / REFERENCE, provenance)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but the results of an earlier run.

    Raises:
        InputError: `folder` exists and is something else.
    """
    if folder.exists() and not (folder / METRICS).is_file():
        raise InputError(f"{folder} exists and is not a ddip-pl result; choose another --output")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` once everything has been written.

    Raises:
        InputError: see `check_replaceable`.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as temporary:
        place = Path(temporary, "volume")
        place.mkdir()
        yield place
        if folder.exists():
            folder.rename(Path(temporary, "replaced"))
        place.rename(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs have left of the results that they were writing to a folder."""
    for place in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(place, ignore_errors=True)


class PartlyWritten(InputError):
    """A volume was written, but not all other files of its result."""


@contextmanager
def separately(failed: list[str], *paths: Path) -> Iterator[None]:
    """Write files or folders whose failure must not stop the others.

    If they cannot be written, what there is of them is removed, and the first is added to `failed`.
    """
    try:
        yield
    except Exception as error:  # such as a full disk, or a fault of the library that writes the format
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        failed.append(f"{paths[0].name} ({reason(error)})")


def save_nifti(image: Nifti1Image, path: Path, provenance: Mapping[str, str]) -> None:
    """Write an image with its provenance: the program as the description, all as a comment (an extension, JSON)."""
    program = {name: value for name, value in provenance.items() if name in ("version", "commit")}
    image.header["descrip"] = ", ".join(lines(program))[:LONGEST_DESCRIPTION].encode()
    image.header.extensions.append(Nifti1Extension("comment", json.dumps(provenance).encode()))
    nib.save(image, path)  # type: ignore[attr-defined]


def write_hdf5(path: Path, images: Tensor, frame: Frame, provenance: Mapping[str, str]) -> None:
    """Write unpadded images `(slices, channels, height, width)` as an HDF5 file that `read_volume` reads.

    Complex images are also written with their phase, as a second dataset `complex`.
    """
    with h5py.File(path, "w") as file:
        file["reconstruction"] = frame.in_units(images)
        if images.shape[1] == 2:
            low, high = frame.window
            values = torch.complex(*images.unbind(1)).numpy(force=True)
            file["complex"] = rearrange(values, "s h w -> w h s") * (high - low)
        file.attrs["provenance"] = json.dumps(provenance)
        for dataset in file.values():
            dataset.attrs.update(affine=frame.affine, units=frame.units)


def read_table(path: Path) -> list[dict[str, float]]:
    """Rows of numbers from a CSV file; empty cells are left out."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as CSV; a cell is empty if its row lacks the value."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
