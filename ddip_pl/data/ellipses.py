"""Random ellipses: the only images that the prior ever sees, made on the fly and never stored."""

from typing import Literal

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
        ellipses: `(batch, count, 6)`, see `draw_ellipses`; computed in its dtype (float64 keeps the background at zero).

    Returns:
        `(batch, size, size)` of the same dtype.
    """
    value, a, b, centre_x, centre_y, rotation = ellipses[:, :, None, :].unbind(-1)
    cos, sin = rotation.cos(), rotation.sin()
    # The ellipse covers |x| <= extent, and there y = slope x +- a b / extent^2 sqrt(extent^2 - x^2).
    extent = ((a * cos) ** 2 + (b * sin) ** 2).clamp(min=torch.finfo(ellipses.dtype).tiny)
    slope = (a**2 - b**2) * cos * sin / extent
    pixel = (size - 1) / 2
    x = torch.arange(size, device=ellipses.device, dtype=ellipses.dtype) / pixel - 1 - centre_x
    gap = torch.addcmul(extent, x, x, value=-1)
    weight = torch.where(gap >= 0, value, 0).flatten()
    half = gap.clamp_(min=0).sqrt_().mul_(pixel * a * b / extent)  # in place: fresh memory costs more than arithmetic
    middle = torch.addcmul(pixel * (centre_y + 1), pixel * slope, x)

    batch = len(ellipses)
    line = torch.arange(batch * size, device=ellipses.device).view(batch, 1, size) * (size + 1)
    ends = ellipses.new_zeros(batch * size * (size + 1))
    ends.scatter_add_(0, (middle - half).ceil_().clamp_(0, size).long().add_(line).flatten(), weight)
    ends.scatter_add_(0, middle.add_(half).floor_().clamp_(-1, size - 1).long().add_(line + 1).flatten(), weight.neg_())
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


class RandomEllipses(Dataset[dict[str, np.ndarray]]):
    """Parameters of phantom `index`, a pure function of seed and index: the same on every machine and in every worker."""

    def __init__(self, length: int, seed: int, variant: Variant):
        self.length, self.seed, self.variant = length, seed, variant

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, index))
        return {
            "ellipses": draw_ellipses(rng, self.variant),
            "phase": rng.uniform(-np.pi, np.pi) + rng.normal(0, 1, (4, 4)),
            "corner": rng.uniform(size=2),
        }


class FreshIndices(DistributedSampler[dict[str, np.ndarray]]):
    """Epoch e gives the indices e n .. (e + 1) n - 1, shared out to the ranks: no phantom is ever seen twice."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (self.epoch * self.total_size + index for index in super().__iter__())


class EllipsesDataModule(LightningDataModule):
    """Phantoms for `fit` and `validate`, `(batch, channels, size, size)` in [0, 1].

    The loader hands out ellipse parameters only; the images are made where the batch is used, on the GPU if there is one.

    Args:
        image_size: height and width in pixels.
        channels: 1 for real phantoms, 2 for complex ones (real, imaginary) with a smooth random phase.
        variant: "uniform" or "disk", see `draw_ellipses`.
        crop: train on random windows of this many pixels instead of whole phantoms (about as good, far cheaper).
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
        batch_size: int = 16,
        epoch_size: int = 16_000,
        validation_size: int = 32,
        num_workers: int = 0,
    ):
        super().__init__()
        if crop is not None and not 0 < crop <= image_size:
            raise InputError(f"data.crop is {crop}; it must lie between 1 and data.image_size = {image_size}")
        self.image_size, self.channels, self.variant, self.crop = image_size, channels, variant, crop
        self.batch_size, self.epoch_size, self.validation_size = batch_size, epoch_size, validation_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[dict[str, np.ndarray]]:
        dataset = RandomEllipses(self.epoch_size, torch.initial_seed() % 2**63, self.variant)
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = FreshIndices(dataset, ranks, rank, shuffle=False)
        return DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=self.num_workers, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, np.ndarray]]:
        dataset = RandomEllipses(self.validation_size, VALIDATION_SEED, self.variant)
        return DataLoader(dataset, self.batch_size)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Tensor:
        images = phantoms(batch["ellipses"], self.image_size, batch["phase"] if self.channels == 2 else None)
        if self.crop is None or not (self.trainer and self.trainer.training):
            return images
        corner = (batch["corner"] * (self.image_size - self.crop + 1)).long()
        window = corner[:, :, None] + torch.arange(self.crop, device=corner.device)
        index = torch.arange(len(images), device=corner.device)[:, None, None]
        return images.movedim(1, -1)[index, window[:, 0, :, None], window[:, 1, None, :]].movedim(-1, 1)
