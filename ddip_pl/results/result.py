"""A reconstructed volume."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from torch import Tensor

from ddip_pl.adaptation.guard import DIVERGENCES
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import by_slice, perceptual_distance, summary
from ddip_pl.evaluation.pictures import compare
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.checkpoint import prior_file
from ddip_pl.report.page import Case, Shown, write_page
from ddip_pl.results.folder import (
    DEVIATION,
    DICOM,
    HDF5,
    LORA,
    NULL_SPACE,
    PAGE,
    PLANES,
    RECONSTRUCTION,
    RECORD,
    WEIGHTS,
    PartlyWritten,
    new_folder,
    save_nifti,
    separately,
    write_hdf5,
    write_run,
)
from ddip_pl.results.provenance import digest, lines, program
from ddip_pl.results.warnings import warnings
from ddip_pl.volumes.dicom import write_dicom
from ddip_pl.volumes.frame import Frame, magnitude

ITERATIONS, TOLERANCE = 300, 1e-5  # of the pseudo-inverse; in single precision, more of them diverge


@dataclass(frozen=True, eq=False)
class Result:
    """A reconstructed volume and how it was obtained.

    Attributes:
        images: `(slices, channels, height, width)`, with padding; 0 where nothing is measured. A NumPy array if
            `reconstruct` was given one.
        measurement: the data that they were reconstructed from.
        trajectory: figures of each step (diffusion step or iteration of a baseline), including `seconds`.
        weights: the adapted weights; empty if the method adapts none.
        frame: see `Frame`.
        peak_memory_bytes: see `peak_memory`.
        prior: file of the prior, if there is one.
        choice: discrepancy on hidden data by name of a method, if the method was chosen by it (see `BestOf`).
        prior_size: height and width that the prior is trained for.
        samples: posterior samples `(samples, slices, channels, height, width)` whose mean the images are; None if the
            method drew only one.
    """

    images: Tensor | np.ndarray
    measurement: Measurement
    trajectory: Sequence[dict[str, float]] = ()
    weights: AdaptedWeights = field(default_factory=AdaptedWeights)
    frame: Frame = field(default_factory=Frame)
    peak_memory_bytes: int = 0
    prior: str | None = None
    choice: Mapping[str, float] = field(default_factory=dict)
    samples: Tensor | None = None
    prior_size: int | None = None

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics().items())
        return f"Result({self.frame.name}, {tuple(self.images.shape)}, {figures}, {self.seconds:.0f} s)"

    def to(self, device: torch.device | str) -> Result:
        """The same on another device. Lightning calls this on what `predict` returns."""
        measurement, weights = self.measurement.to(device), self.weights.to(device)
        samples = None if self.samples is None else self.samples.to(device)
        return replace(self, images=self.tensor.to(device), measurement=measurement, weights=weights, samples=samples)

    @property
    def seconds(self) -> float:
        """Time of all steps, including those before a run was resumed."""
        return sum(row["seconds"] for row in self.trajectory)

    @property
    def divergences(self) -> int:
        """How often gradient steps of the adaptation were undone because their losses ran away."""
        return int(sum(row.get(DIVERGENCES, 0) for row in self.trajectory))

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """The entries of `choice`, the chosen method first."""
        return sorted(self.choice.items(), key=lambda entry: entry[1])

    @property
    def tensor(self) -> Tensor:
        """The images as a tensor, on the device of the measurement."""
        return torch.as_tensor(self.images).to(self.measurement.y.device)

    @property
    def volume(self) -> Tensor:
        """The images without padding."""
        return self.frame.unpad(self.tensor)

    @property
    def reference(self) -> Tensor | None:
        """The true images without padding, 0 where nothing is measured; None if unknown."""
        reference = self.measurement.reference
        return None if reference is None else self.frame.unpad(self.measurement.operator.visible(reference))

    @cached_property
    def standard_deviation(self) -> Tensor | None:
        """Standard deviation of the samples without padding, `(slices, 1, height, width)`; None without samples.

        If they are complex, it is that of their magnitude, as the volume is written as magnitude.
        """
        if self.samples is None:
            return None
        return torch.stack([magnitude(self.frame.unpad(sample)) for sample in self.samples]).std(0)

    @cached_property
    def null_space(self) -> Tensor:
        """`x - A^+ A x` without padding: the part of the images that leaves no trace in the measurement.

        The prior alone decided it. `A^+` is by conjugate gradients, to convergence. The noise is not considered: of
        what the noise hides, the prior decided more.
        """
        A, x = self.measurement.operator, self.tensor
        return self.frame.unpad(x - A.solve(A.normal(x), ITERATIONS, tolerance=TOLERANCE))

    @property
    def maps(self) -> dict[str, Nifti1Image]:
        """Where the volume is uncertain, as images in its units, by name; empty without samples."""
        if self.standard_deviation is None:
            return {}
        low, high = self.frame.window
        frame = replace(self.frame, window=(0.0, high - low))  # scaled like the volume, not shifted
        return {DEVIATION: frame.nifti(self.standard_deviation), NULL_SPACE: frame.nifti(self.null_space)}

    @cached_property
    def direct(self) -> Result:
        """The direct inversion `A^+ y` of the same measurement, for comparison."""
        operator = self.measurement.operator
        images = operator.visible(operator.pseudo_inverse(self.measurement.y))
        return Result(images, self.measurement, frame=self.frame)

    def metrics(self, reference: Tensor | np.ndarray | None = None) -> dict[str, float]:
        """Figures of merit of the volume.

        Args:
            reference: the true images, with the shape of `images`; by default those of the measurement.

        Returns:
            With a reference: `psnr` in dB, `ssim` and, if torchvision is installed, `lpips`. Always: the relative
            `residual`. If `sigma_y` is not 0: `discrepancy`.

        Raises:
            InputError: the reference has another shape, or is complex.
        """
        if reference is None:
            return dict(self._metrics)
        truth = torch.as_tensor(reference)
        if truth.ndim != 4 or truth.is_complex() or magnitude(truth).shape != magnitude(self.tensor).shape:
            raise InputError(
                f"the reference is {tuple(truth.shape)} {truth.dtype}; expected real numbers with the shape of the "
                f"reconstruction, {tuple(self.images.shape)}"
            )
        return replace(self, measurement=replace(self.measurement, reference=truth.to(self.tensor))).metrics()

    def slice_metrics(self) -> list[dict[str, float]]:
        """Number, PSNR and SSIM of each slice; empty without a reference."""
        return [dict(row) for row in self._slice_metrics]

    @cached_property
    def _metrics(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if (reference := self.reference) is not None:
            figures |= summary(self.volume, reference, self._slice_metrics)
            if (lpips := perceptual_distance(self.volume, reference)) is not None:
                figures["lpips"] = lpips
        figures["residual"] = self.measurement.relative_residual(self.tensor)
        if self.measurement.sigma_y:
            figures["discrepancy"] = self.measurement.discrepancy(self.tensor)
        return figures

    @cached_property
    def _slice_metrics(self) -> list[dict[str, float]]:
        return [] if self.reference is None else by_slice(self.volume, self.reference)

    @property
    def uncertainty(self) -> dict[str, float]:
        """Number of samples, their mean `standard_deviation` in units of the volume, and the `null_space_energy`.

        The energy is `||x - A^+ A x||^2 / ||x||^2`. Empty without samples.
        """
        if self.samples is None or self.standard_deviation is None:
            return {}
        low, high = self.frame.window
        return {
            "samples": len(self.samples),
            "standard_deviation": float(self.standard_deviation.mean()) * (high - low),
            "null_space_energy": float(self.null_space.square().sum() / self.volume.square().sum()),
        }

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Version and commit of ddip-pl; hashes of the prior's file, if it still exists, and of the measured values."""
        prior = None if self.prior is None else prior_file(self.prior)
        hashes = {"prior": digest(prior)} if prior is not None and prior.is_file() else {}
        return {**program(), **hashes, "measurement": self.measurement.digest[:32]}

    @property
    def warnings(self) -> list[str]:
        """What is suspicious about the result, one line each; docs/reliability.md lists the rules."""
        figures = self.metrics() | {f"input_{name}": value for name, value in self.direct.metrics().items()}
        return warnings(magnitude(self.tensor), figures | self.uncertainty, self.trajectory, self.prior_size)

    def facts(self) -> dict[str, Any]:
        """Figures of merit of the volume and of the direct inversion (`input_...`), cost, origin and warnings."""
        measurement = self.measurement
        return {
            **self.metrics(),
            **{f"input_{name}": value for name, value in self.direct.metrics().items()},
            **self.uncertainty,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "sigma_y": measurement.sigma_y,
            **({"units": self.frame.units} if self.frame.units else {}),
            "slices": len(measurement),
            "steps": len(self.trajectory),
            "adapted_parameters": self.weights.count,
            **({DIVERGENCES: self.divergences} if any("loss_before" in row for row in self.trajectory) else {}),
            "prior": self.prior and Path(self.prior).name,
            **({"chosen": self.ranking[0][0], "hidden_discrepancy": dict(self.ranking)} if self.choice else {}),
            "device": f"{measurement.y.device.type}, {torch.get_num_threads()} threads",
            "versions": {
                "ddip_pl": version("ddip-pl"),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
            "provenance": self.provenance,
            "warnings": self.warnings,
        }

    def shown(self, name: str, metrics: dict[str, Any] | None = None, config: str = "") -> Shown:
        """The volume as a report shows it.

        Args:
            name: of the method.
            metrics: to show; by default the figures of merit.
            config: settings, YAML.
        """
        steps = [{"step": i} | row for i, row in enumerate(self.trajectory, 1)]
        image, figures = self.frame.nifti(self.volume), self.metrics() if metrics is None else metrics
        return Shown(name, image, figures, self.slice_metrics(), steps, config, self.maps)

    def save(
        self,
        folder: str | Path,
        *,
        task: str = "task",
        method: str = "method",
        config: str = "",
        dicom: bool = False,
        hdf5: bool = False,
        identify: bool = False,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """Write the volume, its figures of merit, the adapted weights, the settings, a picture and a report.

        With samples, their standard deviation and the null-space part are written too.

        The folder appears only once everything has been written. A file that cannot be written, other than the volume
        itself, does not stop the others.

        Args:
            folder: of the volume; results of an earlier run in it are replaced.
            task: name of the task.
            method: name of the method.
            config: settings of the run, YAML.
            dicom: write the volume as a DICOM series too.
            hdf5: write the volume as an HDF5 file too, complex images with their phase.
            identify: the DICOM series names the patient and study of its source.
            origin: hashes of settings and input, to be written with the `provenance`.

        Raises:
            PartlyWritten: some files could not be written; the volume and the others are there.
            InputError: the folder exists and is not a result.
            OSError: the folder or the volume cannot be written.
        """
        volume, frame = self.volume, self.frame
        reference = None if self.reference is None else frame.nifti(self.reference)
        failed: list[str] = []
        provenance = self.provenance | dict(origin or {})

        def shown() -> Shown:
            figures = self.facts() | {"provenance": provenance}
            return self.shown(method, {"task": task, "method": method} | figures, config)

        with new_folder(Path(folder)) as place:
            save_nifti(frame.nifti(volume), place / RECONSTRUCTION, provenance)
            with separately(failed, *(place / name for name in RECORD)):
                write_run(place, shown(), reference)
            with separately(failed, place / WEIGHTS, place / LORA):
                self.weights.save(place, (self.prior and Path(self.prior).name) or "", provenance.get("prior", ""))
            if dicom:
                with separately(failed, place / DICOM):
                    values, about = frame.in_units(volume), f"{task} {method}"
                    write_dicom(place / DICOM, values, frame.affine, frame.header, about, identify, lines(provenance))
            if hdf5:
                with separately(failed, place / HDF5):
                    write_hdf5(place / HDF5, volume, frame, provenance)
            with separately(failed, place / PLANES):
                (place / PLANES).parent.mkdir()
                panels = {"input": self.direct, method: self}
                compare(
                    {name: result.volume for name, result in panels.items()},
                    self.reference,
                    {name: result.metrics() for name, result in panels.items()},
                    frame.affine,
                    place / PLANES,
                )
            with separately(failed, place / PAGE):
                case = Case(task, frame.name, [self.direct.shown("input"), shown()], reference)
                write_page(place / PAGE, f"{frame.name}, {task}, {method}", [case])
        if failed:
            raise PartlyWritten(f"{folder}: {', '.join(failed)} could not be written; the other files are there")
