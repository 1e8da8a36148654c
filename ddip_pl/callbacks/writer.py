"""Writing a reconstructed volume and all that belongs to it."""

import csv
import json
import platform
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import lightning
import nibabel as nib
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

import ddip_pl
from ddip_pl.adaptation.lora import save
from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import by_slice, figures_of_merit, magnitude
from ddip_pl.evaluation.pictures import compare
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.module import Method, Result
from ddip_pl.report.page import Shown, read_case, write_page
from ddip_pl.volumes.dicom import check_writable, write_dicom


class VolumeWriter(Callback):
    """Writes `<folder>/<volume>/`: the volume, its figures of merit, the adapted weights, the settings and a report.

    A volume's folder appears when it is complete, and not before.

    Args:
        folder: for all volumes of the run.
        task: name of the task.
        method: name of the method.
        config: settings of the run, YAML.
        dicom: write the volume as a DICOM series too.
        hdf5: write the volume as an HDF5 file too, complex images with their phase.
    """

    def __init__(self, folder: Path, task: str, method: str, config: str = "", dicom: bool = False, hdf5: bool = False):
        self.folder, self.task, self.method, self.config = folder, task, method, config
        self.dicom, self.hdf5 = dicom, hdf5
        self.created: list[Path] = []
        self.written: list[Path] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out that the folder cannot be written before the long run, not after it."""
        self.created = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(f"output folder {self.folder}: cannot be written ({error.strerror})") from error

    on_predict_start = on_test_start

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Measurement, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Replace results of an earlier run, and nothing else that may lie there."""
        folder = self.folder / batch.name
        if folder.exists() and not (folder / "metrics.json").is_file():
            raise InputError(f"{folder} exists and holds no results of ours; choose another --output")
        if self.dicom:
            check_writable(batch.affine.numpy())

    on_predict_batch_start = on_test_batch_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take back the folders that were created and are still empty."""
        with suppress(OSError):
            for folder in self.created:
                folder.rmdir()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.write(pl_module, outputs, with_reference=True)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.write(pl_module, outputs, with_reference=False)

    def write(self, module: LightningModule, result: Result, with_reference: bool) -> None:
        """Write all files of a volume, first under a temporary name."""
        assert isinstance(module, Method)
        final = self.folder / result.measurement.name
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as temporary:
            folder = Path(temporary, "volume")
            folder.mkdir()
            self._write_files(folder, module, result, with_reference)
            if final.exists():
                final.rename(Path(temporary, "replaced"))
            folder.rename(final)
        self.written.append(final)
        print(f"{final.name}: files in {final}")

    def _write_files(self, folder: Path, module: Method, result: Result, with_reference: bool) -> None:
        measurement = result.measurement
        images = measurement.unpad(result.images)
        padded_guess = measurement.operator.pseudo_inverse(measurement.y)
        guess = measurement.unpad(padded_guess)
        reference = None
        if with_reference and measurement.reference is not None:
            reference = measurement.unpad(measurement.reference)
        metrics: dict[str, Any] = {"task": self.task, "method": self.method}
        input_figures = figures_of_merit(padded_guess, measurement, reference)
        metrics |= figures_of_merit(result.images, measurement, reference)
        metrics |= {f"input_{name}": value for name, value in input_figures.items()}
        if reference is not None:
            write_table(folder / "slices.csv", by_slice(images, reference))
        metrics |= {
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "sigma_y": measurement.sigma_y,
            **({"units": measurement.units} if measurement.units else {}),
            "slices": len(measurement),
            "steps": len(result.trajectory),
            "adapted_parameters": sum(weight.numel() for weight in result.weights.values()),
            "prior": module.prior and Path(module.prior).name,
            "device": f"{module.device.type}, {torch.get_num_threads()} threads",
            "versions": {
                "ddip_pl": ddip_pl.__version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (folder / "config.yaml").write_text(self.config)
        write_table(folder / "trajectory.csv", [{"step": i + 1} | row for i, row in enumerate(result.trajectory)])
        if any(".lora_A." in name for name in result.weights):
            save(result.weights, folder / "lora")
        elif result.weights:  # of another kind
            weights = {name: weight.cpu().contiguous() for name, weight in result.weights.items()}
            save_file(weights, folder / "weights.safetensors")
        write_volume(folder / "reconstruction.nii.gz", images, measurement)
        if self.dicom:
            values, affine = in_units(images, measurement), measurement.affine.numpy()
            write_dicom(folder / "dicom", values, affine, measurement.header, f"{self.task} {self.method}")
        if self.hdf5:
            write_hdf5(folder / "reconstruction.h5", images, measurement)
        if reference is not None:
            write_volume(folder / "reference.nii.gz", reference, measurement)
        (folder / "figures").mkdir()
        panels = {"input": guess, self.method: images}
        compare(panels, reference, measurement.affine, folder / "figures" / "planes.png")
        case = read_case(measurement.name, [folder])
        rows = [] if reference is None else by_slice(guess, reference)
        case.runs.insert(0, Shown("input", as_nifti(guess, measurement), input_figures, rows))
        write_page(folder / "report.html", f"{measurement.name}, {self.task}, {self.method}", [case])


def write_volume(path: Path, images: Tensor, measurement: Measurement) -> None:
    """Images in [0, 1] as a NIfTI volume, in the units and the place of what was measured."""
    nib.save(as_nifti(images, measurement), path)  # type: ignore[attr-defined]


def as_nifti(images: Tensor, measurement: Measurement) -> nib.Nifti1Image:  # type: ignore[name-defined]
    """Images in [0, 1] as a NIfTI image, in the units and the place of what was measured."""
    return nib.Nifti1Image(in_units(images, measurement), measurement.affine.numpy())  # type: ignore[attr-defined]


def write_hdf5(path: Path, images: Tensor, measurement: Measurement) -> None:
    """The same as an HDF5 file that `read_volume` reads; complex images are in a second dataset, `complex`."""
    with h5py.File(path, "w") as file:
        file["reconstruction"] = in_units(images, measurement)
        if images.shape[1] == 2:
            low, high = measurement.window
            file["complex"] = torch.complex(*images.cpu().unbind(1)).numpy().transpose(2, 1, 0) * (high - low)
        for dataset in file.values():
            dataset.attrs.update(affine=measurement.affine.numpy(), units=measurement.units)


def in_units(images: Tensor, measurement: Measurement) -> np.ndarray:
    """Images in [0, 1] as `(columns, rows, slices)` in the units of what was measured."""
    low, high = measurement.window
    return (magnitude(images)[:, 0].cpu().numpy() * (high - low) + low).transpose(2, 1, 0)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of figures as CSV; a figure that a row does not have is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
