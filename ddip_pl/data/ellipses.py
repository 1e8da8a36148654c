"""Training images of the prior: random ellipses, generated on the fly and never stored."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ddip_pl.errors import InputError
from ddip_pl.prior.phantoms import Item, RandomEllipses, Variant, images_of
from ddip_pl.settings import Pixels, PositiveInt, Range, UnitInterval, checked

VALIDATION_SEED = 20240710


class FreshIndices(DistributedSampler[Any]):
    """Epoch e has the indices e n .. (e + 1) n - 1, divided among the ranks: no phantom appears in two epochs.

    Attributes:
        done: number of phantoms that each rank has already seen in this epoch.
    """

    done = 0

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * self.total_size
        start = first + self.rank + self.done * self.num_replicas
        return iter(range(start, first + self.total_size, self.num_replicas))


class PhantomLoader(DataLoader[Item]):
    """Goes on, in a resumed training, with the next batch of the epoch.

    Which one that is follows from the trainer's progress. So the loader has no state of its own, but the methods by
    which Lightning knows that it can resume.

    Args:
        trainer: counts the batches.
        arguments: of the DataLoader.
    """

    sampler: FreshIndices
    batch_size: int

    def __init__(self, trainer: Trainer | None, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.trainer = trainer

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        # A generator, so that this runs at the first batch, when Lightning has restored its progress.
        self.sampler.done = (self.trainer.fit_loop.batch_idx + 1) * self.batch_size if self.trainer else 0
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


@checked
class EllipsesDataModule(LightningDataModule):
    """Phantoms for `fit` and `validate`, `(batch, channels, size, size)` in [0, 1].

    The loader yields ellipse parameters only; images are rendered on the device that uses the batch.

    Args:
        image_size: height and width in pixels.
        channels: 1 for real phantoms, 2 for complex ones (real, imaginary) with a smooth random phase.
        variant: "uniform" or "disk", see `draw_ellipses`; "wide" mixes both and renders most of them as `scanned`,
            which gives a better prior for anatomy.
        crop: train on random windows of this height and width, which teach more for the same cost than whole phantoms.
        whole: with `crop`, the fraction of batches that are whole phantoms, from which the network learns large scales;
            they have fewer images, so that they cost as much as a batch of windows.
        batch_size: images per batch, on each device.
        epoch_size: phantoms per epoch.
        validation_size: number of held-out phantoms, always the same.
        num_workers: processes that draw ellipses; 0 draws them in the training process.
    """

    def __init__(
        self,
        image_size: Pixels = 128,
        channels: Literal[1, 2] = 1,
        variant: Variant = "uniform",
        crop: Pixels | None = None,
        whole: UnitInterval = 0.0,
        batch_size: PositiveInt = 16,
        epoch_size: Annotated[int, Range(1, 10**9)] = 16_000,
        validation_size: PositiveInt = 32,
        num_workers: Annotated[int, Range(0, 256)] = 0,
    ):
        super().__init__()
        if crop is not None and crop > image_size:
            raise InputError(f"data.crop is {crop}; give at most data.image_size = {image_size}")
        self.image_size, self.channels, self.variant = image_size, channels, variant
        self.crop, self.whole = crop, whole
        self.batch_size, self.epoch_size, self.validation_size = batch_size, epoch_size, validation_size
        self.num_workers = num_workers

    def train_dataloader(self) -> PhantomLoader:
        dataset = RandomEllipses(self.epoch_size, torch.initial_seed() % 2**63, self.variant)
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = FreshIndices(dataset, ranks, rank, shuffle=False)
        return PhantomLoader(
            self.trainer, dataset, self.batch_size, sampler=sampler, num_workers=self.num_workers, drop_last=True
        )

    def val_dataloader(self) -> DataLoader[Item]:
        dataset = RandomEllipses(self.validation_size, VALIDATION_SEED, self.variant)
        return DataLoader(dataset, self.batch_size)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Tensor:
        window = self.crop if self.crop and self.trainer and self.trainer.training else self.image_size
        if window < self.image_size and batch["lot"][0] < self.whole:
            few = max(1, len(batch["lot"]) * window**2 // self.image_size**2)
            batch, window = {name: value[:few] for name, value in batch.items()}, self.image_size
        images = images_of(batch, self.image_size, self.channels)
        corner = (batch["corner"] * (self.image_size - window + 1)).long()
        pixel = corner[:, :, None] + torch.arange(window, device=corner.device)
        index = torch.arange(len(images), device=corner.device)[:, None, None]
        windows = rearrange(images, "b c h w -> b h w c")[index, pixel[:, 0, :, None], pixel[:, 1, None, :]]
        return rearrange(windows, "b h w c -> b c h w")
