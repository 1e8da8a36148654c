"""What the command line can choose as data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ddip_pl.physics.measurement import Measurement


class MeasurementDataModule(LightningDataModule, ABC):
    """Measurements for `test` and `predict`, one a batch; `setup` makes them.

    Attributes:
        measurements: of one volume each.
    """

    measurements: Sequence[Measurement]

    @abstractmethod
    def setup(self, stage: str) -> None:
        """Make the measurements.

        Raises:
            InputError: they cannot be had.
        """

    def test_dataloader(self) -> DataLoader[Measurement]:
        return DataLoader(self.measurements, batch_size=None)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader
