"""What the command line can choose as data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ddip_pl.scans.scan import Scan

__all__ = ["MeasurementDataModule", "Scan"]


class MeasurementDataModule(LightningDataModule, ABC):
    """Scans for `test` and `predict`, one a batch; `setup` makes them.

    Attributes:
        scans: of one volume each.
    """

    scans: Sequence[Scan]

    @abstractmethod
    def setup(self, stage: str) -> None:
        """Make the scans.

        Raises:
            InputError: there is something wrong with them.
        """

    def test_dataloader(self) -> DataLoader[Scan]:
        return DataLoader(self.scans, batch_size=None)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader
