"""Base class of the data modules that `test` and `predict` accept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ddip_pl.errors import InputError
from ddip_pl.scans.scan import Scan

__all__ = ["MeasurementDataModule", "Scan"]


class MeasurementDataModule(LightningDataModule, ABC):
    """Scans for `test` and `predict`, one per batch.

    Attributes:
        scans: one per volume; `setup` creates them.
        is_finished: whether the volume of a name has a result already; `setup` may leave out its scan.
    """

    scans: Sequence[Scan]
    is_finished: Callable[[str], bool] = staticmethod(lambda name: False)

    @abstractmethod
    def setup(self, stage: str) -> None:
        """Create the scans.

        Raises:
            InputError: the data or the settings cannot be used.
        """

    def test_dataloader(self) -> DataLoader[Scan]:
        """All scans; Lightning divides them among the devices.

        Raises:
            InputError: there are fewer scans than devices.
        """
        count, devices = len(self.scans), self.trainer.world_size if self.trainer else 1
        if 0 < count < devices:
            raise InputError(
                f"{devices} devices for {count} volume{'s'[: count > 1]}; each device reconstructs volumes of its own, "
                f"so give --trainer.devices {count}"
            )
        return DataLoader(self.scans, batch_size=None)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader
