"""Base class of the data modules that `test` and `predict` accept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from lightning import LightningDataModule
from torch.utils.data import DataLoader

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
        return DataLoader(self.scans, batch_size=None)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader
