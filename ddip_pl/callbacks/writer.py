"""Writes reconstructed volumes as they are finished."""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ddip_pl.errors import InputError, reason
from ddip_pl.results.claim import claimed
from ddip_pl.results.folder import DICOM, HDF5, PartlyWritten, check_replaceable, has_result, remove_unfinished
from ddip_pl.results.result import Result
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.dicom import check_writable


class VolumeWriter(Callback):
    """Save every result to `<folder>/<volume>/`, see `Result.save`, or elsewhere if that has become impossible.

    Args:
        folder: for all volumes of the run.
        task: name of the task.
        method: name of the method.
        config: settings of the run, YAML.
        dicom: write the volume as a DICOM series too.
        hdf5: write the volume as an HDF5 file too, complex images with their phase.
        identify: the DICOM series names the patient and study of its source.
        origin: hashes of settings and input.

    Attributes:
        written: folders of the volumes, in the order written.
        failures: what could not be written where it should be, one line each.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        method: str,
        config: str = "",
        dicom: bool = False,
        hdf5: bool = False,
        identify: bool = False,
        origin: Mapping[str, str] | None = None,
    ):
        self.folder, self.task, self.method, self.config = folder, task, method, config
        self.dicom, self.hdf5, self.identify, self.origin = dicom, hdf5, identify, dict(origin or {})
        self.claim = ExitStack()
        self.written: list[Path] = []
        self.failures: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the result of a volume is there already, from the same settings and data."""
        folder, wanted = self.folder / name, [DICOM] * self.dicom + [HDF5] * self.hdf5
        done = has_result(folder, self.origin) and all((folder / file).exists() for file in wanted)
        if done and folder not in self.written:
            self.written.append(folder)
        return done

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Claim the folder before the long run.

        Raises:
            InputError: it cannot be written, or another run writes to it.
        """
        if trainer.is_global_zero:
            self.claim.enter_context(claimed(self.folder))
            remove_unfinished(self.folder)
            for folder in self.written:
                print(f"{folder.name}: already done, files in {folder}")

    on_predict_start = on_test_start

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Scan, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Check before the reconstruction that its result can be written.

        Raises:
            InputError: it cannot.
        """
        _, frame = batch
        check_replaceable(self.folder / frame.name)
        if self.dicom:
            check_writable(frame.affine, frame.header)

    on_predict_batch_start = on_test_batch_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the folder back."""
        self.claim.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the folder back."""
        self.claim.close()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Save the result."""
        folder = self.save(outputs)
        self.written.append(folder)
        if outputs.choice:
            (chosen, least), *others = outputs.ranking
            following = "".join(f"; next: {name} {value:.3g}" for name, value in others[:1])
            print(f"chosen: {chosen} (hidden discrepancy {least:.3g}{following})")
        print(f"{folder.name}: files in {folder}")

    on_predict_batch_end = on_test_batch_end

    def save(self, result: Result) -> Path:
        """Save a result, if need be to a new folder in the current folder or in the one for temporary files.

        Returns:
            Where it is.

        Raises:
            InputError: it cannot be written anywhere.
        """
        for parent in (self.folder, Path("."), Path(tempfile.gettempdir())):
            created = None
            try:
                if parent != self.folder:
                    created = Path(tempfile.mkdtemp(prefix=f"{result.frame.name}-", dir=parent.absolute()))
                folder = (created or parent) / result.frame.name
                result.save(
                    folder,
                    task=self.task,
                    method=self.method,
                    config=self.config,
                    dicom=self.dicom,
                    hdf5=self.hdf5,
                    identify=self.identify,
                    origin=self.origin,
                )
                return folder
            except PartlyWritten as error:
                self.fail(str(error))
                return folder
            except Exception as error:  # whatever it is, the volume must not be lost
                self.fail(f"{result.frame.name} cannot be written to {parent} ({reason(error)})")
                if created is not None:
                    with suppress(OSError):
                        created.rmdir()
        raise InputError(f"{result.frame.name} could not be written anywhere; make room, and resume from a checkpoint")

    def fail(self, line: str) -> None:
        """Report what could not be written."""
        self.failures.append(line)
        print(f"ddip-pl: error: {line}", file=sys.stderr)
