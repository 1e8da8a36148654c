"""Writes reconstructed volumes as they are finished."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ddip_pl.errors import InputError
from ddip_pl.results.folder import check_replaceable
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.dicom import check_writable


class VolumeWriter(Callback):
    """Save every result to `<folder>/<volume>/`, see `Result.save`.

    Args:
        folder: for all volumes of the run.
        task: name of the task.
        method: name of the method.
        config: settings of the run, YAML.
        dicom: write the volume as a DICOM series too.
        hdf5: write the volume as an HDF5 file too, complex images with their phase.

    Attributes:
        written: folders of the volumes, in the order written.
    """

    def __init__(self, folder: Path, task: str, method: str, config: str = "", dicom: bool = False, hdf5: bool = False):
        self.folder, self.task, self.method, self.config = folder, task, method, config
        self.dicom, self.hdf5 = dicom, hdf5
        self.created: list[Path] = []
        self.written: list[Path] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before the long run that the folder can be written.

        Raises:
            InputError: it cannot.
        """
        self.created = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(f"output folder {self.folder}: cannot be written ({error.strerror})") from error

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
            check_writable(frame.affine)

    on_predict_batch_start = on_test_batch_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the folders that were created and are still empty."""
        with suppress(OSError):
            for folder in self.created:
                folder.rmdir()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Save the result."""
        folder = self.folder / outputs.frame.name
        outputs.save(folder, task=self.task, method=self.method, config=self.config, dicom=self.dicom, hdf5=self.hdf5)
        self.written.append(folder)
        if outputs.choice:
            (chosen, least), *others = outputs.ranking
            following = "".join(f"; next: {name} {value:.3g}" for name, value in others[:1])
            print(f"chosen: {chosen} (hidden discrepancy {least:.3g}{following})")
        print(f"{folder.name}: files in {folder}")

    on_predict_batch_end = on_test_batch_end
