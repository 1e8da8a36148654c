"""Image quality against a reference, on [0, 1] with data range 1."""

import logging
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ddip_pl.physics.measurement import Measurement

log = logging.getLogger(__name__)


def magnitude(images: Tensor) -> Tensor:
    """Real images as they are, complex ones (two channels) by magnitude; `(slices, 1, height, width)`."""
    return images if images.shape[1] == 1 else images.norm(dim=1, keepdim=True)


def quality(images: Tensor, reference: Tensor) -> list[dict[str, float]]:
    """PSNR in dB and SSIM of each slice; images `(slices, channels, height, width)`, clipped to [0, 1].

    SSIM has the 7 x 7 window that is customary for CT and MRI.
    """
    rows = []
    for image, truth in zip(magnitude(images).clamp(0, 1), magnitude(reference), strict=True):
        pair = image[None], truth[None]
        psnr = peak_signal_noise_ratio(*pair, data_range=1.0)
        ssim = structural_similarity_index_measure(*pair, data_range=1.0, gaussian_kernel=False, kernel_size=7)
        assert isinstance(ssim, Tensor)
        rows.append({"psnr": float(psnr), "ssim": float(ssim)})
    return rows


def summary(images: Tensor, reference: Tensor) -> dict[str, float]:
    """Figures of a volume: PSNR from the error of all voxels, SSIM as the mean over its slices."""
    psnr = peak_signal_noise_ratio(magnitude(images).clamp(0, 1), magnitude(reference), data_range=1.0)
    ssim = torch.tensor([row["ssim"] for row in quality(images, reference)]).mean()
    return {"psnr": float(psnr), "ssim": float(ssim)}


def perceptual_distance(images: Tensor, reference: Tensor) -> float | None:
    """LPIPS (Zhang et al. 2018, AlexNet), the mean over slices; None without torchvision or its weights."""
    if find_spec("torchvision") is None:
        return None
    pair = [magnitude(x).clamp(0, 1).expand(-1, 3, -1, -1).split(8) for x in (images, reference)]
    try:
        total = sum(len(x) * lpips(x, truth, "alex", normalize=True) for x, truth in zip(*pair, strict=True))
    except (OSError, RuntimeError) as error:
        log.warning("no LPIPS: %s", error)
        return None
    return float(total) / len(images)


def relative_residual(images: Tensor, measurement: Measurement) -> float:
    """`|| A x - y || / || y ||`."""
    with torch.no_grad():
        return float(measurement.residual(images).norm() / measurement.y.norm())


def discrepancy(images: Tensor, measurement: Measurement) -> float:
    """`|| A x - y || / (sigma_y sqrt(number of values))`, 1 where what is left is the noise; inf without noise."""
    with torch.no_grad():
        noise = measurement.noise_energy().sum().sqrt()
        return float(measurement.residual(images).norm() / noise) if noise else float("inf")


def figures_of_merit(images: Tensor, measurement: Measurement, reference: Tensor | None) -> dict[str, float]:
    """Nearness to the reference, where there is one, and to the data.

    Args:
        images: `(slices, channels, height, width)`, with padding.
        measurement: what they were reconstructed from.
        reference: the truth, without padding.
    """
    figures: dict[str, float] = {}
    if reference is not None:
        figures |= summary(measurement.unpad(images), reference)
        if (lpips := perceptual_distance(measurement.unpad(images), reference)) is not None:
            figures["lpips"] = lpips
    figures["residual"] = relative_residual(images, measurement)
    if measurement.sigma_y:
        figures["discrepancy"] = discrepancy(images, measurement)
    return figures


def by_slice(images: Tensor, reference: Tensor) -> list[dict[str, float]]:
    """PSNR and SSIM of each slice, with its number."""
    return [{"slice": i} | row for i, row in enumerate(quality(images, reference))]
