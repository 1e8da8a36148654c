"""Image quality against a reference, on [0, 1] with data range 1."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ddip_pl.volumes.frame import magnitude

log = logging.getLogger(__name__)


def by_slice(images: Tensor, reference: Tensor) -> list[dict[str, float]]:
    """Number, PSNR in dB and SSIM of each slice; images `(slices, channels, height, width)`, clipped to [0, 1].

    SSIM uses a uniform 7 x 7 window, as is usual for CT and MRI.
    """
    rows = []
    for i, (image, truth) in enumerate(zip(magnitude(images).clamp(0, 1), magnitude(reference), strict=True)):
        pair = image[None], truth[None]
        psnr = peak_signal_noise_ratio(*pair, data_range=1.0)
        ssim = structural_similarity_index_measure(*pair, data_range=1.0, gaussian_kernel=False, kernel_size=7)
        assert isinstance(ssim, Tensor)
        rows.append({"slice": i, "psnr": float(psnr), "ssim": float(ssim)})
    return rows


def summary(images: Tensor, reference: Tensor, slices: Sequence[dict[str, float]] | None = None) -> dict[str, float]:
    """PSNR over all voxels of a volume in dB, and SSIM as the mean over its slices.

    Args:
        images: `(slices, channels, height, width)`, clipped to [0, 1].
        reference: the true images.
        slices: what `by_slice` returns, if already computed.
    """
    psnr = peak_signal_noise_ratio(magnitude(images).clamp(0, 1), magnitude(reference), data_range=1.0)
    rows = by_slice(images, reference) if slices is None else slices
    return {"psnr": float(psnr), "ssim": float(torch.tensor([row["ssim"] for row in rows]).mean())}


def perceptual_distance(images: Tensor, reference: Tensor) -> float | None:
    """LPIPS (Zhang et al. 2018, AlexNet), mean over slices; None if torchvision or its weights are missing."""
    if find_spec("torchvision") is None:
        return None
    pair = [magnitude(x).clamp(0, 1).expand(-1, 3, -1, -1).split(8) for x in (images, reference)]
    try:
        total = sum(len(x) * lpips(x, truth, "alex", normalize=True) for x, truth in zip(*pair, strict=True))
    except (OSError, RuntimeError) as error:
        log.warning("LPIPS is left out: %s", error)
        return None
    return float(total) / len(images)
