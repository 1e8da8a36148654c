"""Random ellipses: the only images that the prior ever sees, made on the fly and never stored."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ddip_pl.errors import InputError

Variant = Literal["uniform", "disk"]
DISK_RADIUS = 0.4745
VALIDATION_SEED = 20240710
Item = dict[str, Any]  # ellipse parameters and what else is drawn for one phantom


def draw_ellipses(rng: np.random.Generator, variant: Variant = "uniform") -> np.ndarray:
    """Parameters of one phantom's ellipses on [-1, 1]^2.

    "uniform": up to 70 ellipses anywhere (Adler & Oktem 2017; Barbano et al. 2022). "disk": up to 140, smaller, with
    centres on a disk. Unused rows are zero.

    Returns:
        `(70 or 140, 6)` float64: value, two semi-axes, centre x and y, rotation in radians, as ODL has them.
    """
    most = 70 if variant == "uniform" else 140
    value = rng.uniform(-0.4, 1.0, most)
    axes = 0.2 * rng.exponential(1.0, (2, most))
    rotation = rng.uniform(0, 2 * np.pi, most)
    if variant == "uniform":
        centre = rng.uniform(-0.9, 0.9, (2, most))
    else:
        axes *= DISK_RADIUS
        angle = rng.uniform(0, 2 * np.pi, most)
        centre = rng.triangular(0, DISK_RADIUS, DISK_RADIUS, most) * np.stack([np.cos(angle), np.sin(angle)])
    ellipses = np.stack([value, *axes, *centre, rotation], axis=1)
    ellipses[min(rng.poisson(most), most) :] = 0
    return ellipses


def render(ellipses: Tensor, size: int) -> Tensor:
    """Sum of ellipses on the pixel grid of [-1, 1]^2, with ODL's conventions.

    The first image axis is x, the second y; the centres of the outermost pixels lie on -1 and 1.
    Each line of pixels at constant x cuts an ellipse in an interval known in closed form, so only the interval's two
    ends are written and a running sum fills it: the cost is that of the lines, not of the pixels.

    Args:
        ellipses: `(batch, count, 6)`, see `draw_ellipses`; computed in its dtype (float64 keeps background at zero).

    Returns:
        `(batch, size, size)` of the same dtype.
    """
    batch, count, _ = ellipses.shape
    value, a, b, centre_x, centre_y, rotation = ellipses.flatten(0, 1).unbind(-1)
    cos, sin = rotation.cos(), rotation.sin()
    # The ellipse covers |x| <= sqrt(extent), and there y = slope x +- a b / extent sqrt(extent - x^2).
    extent = ((a * cos) ** 2 + (b * sin) ** 2).clamp(min=torch.finfo(ellipses.dtype).tiny)
    slope = (a**2 - b**2) * cos * sin / extent
    pixel = (size - 1) / 2
    x = torch.arange(size, device=ellipses.device, dtype=ellipses.dtype) / pixel - 1 - centre_x[:, None]
    gap = torch.addcmul(extent[:, None], x, x, value=-1)

    ellipse, line = (gap >= 0).nonzero(as_tuple=True)  # most lines miss most ellipses
    half = (pixel * a * b / extent)[ellipse] * gap[ellipse, line].sqrt()
    middle = (pixel * slope)[ellipse] * x[ellipse, line] + (pixel * (centre_y + 1))[ellipse]
    value = value[ellipse]
    start = (ellipse // count * size + line) * (size + 1)
    ends = ellipses.new_zeros(batch * size * (size + 1))
    ends.scatter_add_(0, start + (middle - half).ceil().clamp(0, size).long(), value)
    ends.scatter_add_(0, start + (middle + half).floor().clamp(-1, size - 1).long() + 1, -value)
    return ends.view(batch, size, size + 1).cumsum(2)[:, :, :size]


def phantoms(ellipses: Tensor, size: int, phase: Tensor | None = None) -> Tensor:
    """Ellipses to images in [0, 1]: the foreground is shifted by the minimum, the image divided by its maximum.

    Args:
        ellipses: `(batch, count, 6)` float64.
        phase: `(batch, 4, 4)` radians on a coarse grid; gives complex images of this smooth phase.

    Returns:
        `(batch, 1, size, size)` float32, or with `phase` `(batch, 2, size, size)`: real and imaginary part.
    """
    image = render(ellipses, size)
    foreground = image.abs() > 1e-9  # what the running sums leave behind an ellipse is far below that
    minimum = image.amin((1, 2), keepdim=True)
    image = torch.where(foreground, image, minimum).sub_(minimum)
    image = image.div_(image.amax((1, 2), keepdim=True).clamp_(min=1e-9))[:, None].float()
    if phase is None:
        return image
    angle = F.interpolate(phase[:, None].float(), size=(size, size), mode="bicubic", align_corners=True)
    return torch.cat([image * angle.cos(), image * angle.sin()], dim=1)


class RandomEllipses(Dataset[Item]):
    """Parameters of phantom `index`: a function of seed and index, the same on every machine and in every worker."""

    def __init__(self, length: int, seed: int, variant: Variant):
        self.length, self.seed, self.variant = length, seed, variant

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng((self.seed, index))
        return {
            "ellipses": draw_ellipses(rng, self.variant),
            "phase": rng.uniform(-np.pi, np.pi) + rng.normal(0, 1, (4, 4)),
            "corner": rng.uniform(size=2),
            "lot": rng.uniform(),
        }


class FreshIndices(DistributedSampler[Any]):
    """Epoch e gives the indices e n .. (e + 1) n - 1, shared out to the ranks: no phantom comes in two epochs.

    (A run that is resumed inside an epoch starts that epoch's phantoms again.)
    """

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * self.total_size
        return iter(range(first + self.rank, first + self.total_size, self.num_replicas))


class EllipsesDataModule(LightningDataModule):
    """Phantoms for `fit` and `validate`, `(batch, channels, size, size)` in [0, 1].

    The loader hands out ellipse parameters only; images are made where the batch is used, on the GPU if there is one.

    Args:
        image_size: height and width in pixels.
        channels: 1 for real phantoms, 2 for complex ones (real, imaginary) with a smooth random phase.
        variant: "uniform" or "disk", see `draw_ellipses`.
        crop: train on random windows of this many pixels, which teach more for the same cost than whole phantoms.
        whole: share of batches, with `crop`, that are whole phantoms, as few as cost as much as the windows do;
            the large scales are learnt from them.
        batch_size: images of a batch, on each device.
        epoch_size: phantoms of what counts as an epoch.
        validation_size: number of held-out phantoms, always the same ones.
    """

    def __init__(
        self,
        image_size: int = 128,
        channels: Literal[1, 2] = 1,
        variant: Variant = "uniform",
        crop: int | None = None,
        whole: float = 0.0,
        batch_size: int = 16,
        epoch_size: int = 16_000,
        validation_size: int = 32,
        num_workers: int = 0,
    ):
        super().__init__()
        if crop is not None and not 0 < crop <= image_size:
            raise InputError(f"data.crop is {crop}; it must lie between 1 and data.image_size = {image_size}")
        self.image_size, self.channels, self.variant = image_size, channels, variant
        self.crop, self.whole = crop, whole
        self.batch_size, self.epoch_size, self.validation_size = batch_size, epoch_size, validation_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Item]:
        dataset = RandomEllipses(self.epoch_size, torch.initial_seed() % 2**63, self.variant)
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = FreshIndices(dataset, ranks, rank, shuffle=False)
        return DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=self.num_workers, drop_last=True)

    def val_dataloader(self) -> DataLoader[Item]:
        dataset = RandomEllipses(self.validation_size, VALIDATION_SEED, self.variant)
        return DataLoader(dataset, self.batch_size)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Tensor:
        window = self.crop if self.crop and self.trainer and self.trainer.training else self.image_size
        if window < self.image_size and batch["lot"][0] < self.whole:
            few = max(1, len(batch["lot"]) * window**2 // self.image_size**2)
            batch, window = {name: value[:few] for name, value in batch.items()}, self.image_size
        images = phantoms(batch["ellipses"], self.image_size, batch["phase"] if self.channels == 2 else None)
        corner = (batch["corner"] * (self.image_size - window + 1)).long()
        pixel = corner[:, :, None] + torch.arange(window, device=corner.device)
        index = torch.arange(len(images), device=corner.device)[:, None, None]
        return images.movedim(1, -1)[index, pixel[:, 0, :, None], pixel[:, 1, None, :]].movedim(-1, 1)
