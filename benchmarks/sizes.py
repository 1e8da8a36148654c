"""How a prior performs at image sizes that it was not trained on, for several forms of attention.

It prints four tables: the error of the predicted noise for phantoms drawn at each size; for volumes, the PSNR of
one-step denoising and of DDS with few steps, both compared with total variation; time and memory of a forward pass.

    python benchmarks/sizes.py --ct ct_thorax.nii.gz --mri dicom_mr_t1
"""

import argparse
import logging
import math
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.data.ellipses import VALIDATION_SEED
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import Measurement, ParallelBeamCT, PoissonDisc, SingleCoilMRI
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.phantoms import RandomEllipses, phantoms, scanned
from ddip_pl.prior.schedule import diffuse, noise_schedule, tweedie
from ddip_pl.prior.unet import AttentionBlock, UNet, mirrored
from ddip_pl.reconstruction import Reconstruction, Sampler
from ddip_pl.reconstruction.module import SHIPPED_PRIORS

Size = tuple[int, int]
Way = Callable[[AttentionBlock, Tensor, Size], Tensor]
TIMESTEPS, DENOISING = (20, 100, 400), (20, 50, 100)

# --- forms of attention at sizes other than the trained one -------------------------------------------------
# Each takes a block, its input and the size that this input had in training.


def tokens(block: AttentionBlock, x: Tensor, grid: Size) -> Tensor:
    """Every pixel attends to all pixels."""
    return AttentionBlock.forward(block, x)


def scaled(block: AttentionBlock, x: Tensor, grid: Size) -> Tensor:
    """The same with logits times log n / log n_train, which preserves the entropy (Jin et al. 2023)."""
    assert block.heads_first, "the new order has the queries elsewhere"
    count, trained = x.shape[2] * x.shape[3], grid[0] * grid[1]

    def sharpen(module: nn.Module, arguments: Any, qkv: Tensor) -> Tensor:
        q, kv = qkv.unflatten(1, (block.heads, -1)).tensor_split((qkv.shape[1] // block.heads // 3,), dim=2)
        return torch.cat([q * (math.log(count) / math.log(trained)), kv], dim=2).flatten(1, 2)

    hook = block.qkv.register_forward_hook(sharpen)
    try:
        return AttentionBlock.forward(block, x)
    finally:
        hook.remove()


def windows(block: AttentionBlock, x: Tensor, grid: Size) -> Tensor:
    """Attention within separate windows of the trained size."""
    return tiled(lambda part: AttentionBlock.forward(block, part), x, grid[0])


def pooled(block: AttentionBlock, x: Tensor, grid: Size) -> Tensor:
    """Attention between means over a grid of the trained size; its output is interpolated and added."""
    small = F.adaptive_avg_pool2d(x, grid)
    return x + F.interpolate(AttentionBlock.forward(block, small) - small, x.shape[2:], mode="bilinear")


def none(block: AttentionBlock, x: Tensor, grid: Size) -> Tensor:
    """No attention."""
    return x


WAYS: dict[str, Way] = {"tokens": tokens, "scaled": scaled, "windows": windows, "pooled": pooled, "none": none}


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """Apply a function of images to square tiles of them."""
    whole = mirrored(x, tile)
    rows, columns = whole.shape[2] // tile, whole.shape[3] // tile
    tiles = whole.unflatten(3, (columns, tile)).unflatten(2, (rows, tile)).permute(0, 2, 4, 1, 3, 5)
    result = function(tiles.flatten(0, 2)).unflatten(0, (len(x), rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return result.flatten(4, 5).flatten(2, 3)[..., : x.shape[2], : x.shape[3]]


def attend(network: UNet, way: Way) -> None:
    """Replace the attention in all blocks of a network."""
    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    grids: dict[nn.Module, Size] = {}
    hooks = [b.register_forward_pre_hook(lambda b, x: grids.update({b: tuple(x[0].shape[2:])})) for b in blocks]
    size = network.config.image_size
    network(torch.zeros(1, network.in_channels, size, size), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    for block in blocks:
        block.forward = partial(way, block, grid=grids[block])  # type: ignore[method-assign]


# --- what is measured -------------------------------------------------------------------------------------


def drawn(count: int, size: Size) -> Tensor:
    """Held-out phantoms of the shipped prior's family, drawn at this size."""
    longest, family = max(size), RandomEllipses(count, VALIDATION_SEED, "wide")
    images = []
    for item in (family[i] for i in range(count)):
        ellipses, *looks = (torch.from_numpy(item[name])[None] for name in ("ellipses", "look", "shading"))
        images.append(scanned(ellipses, longest, *looks) if item["scanned"] else phantoms(ellipses, longest))
    top, left = ((longest - length) // 2 for length in size)
    return torch.cat(images)[..., top : top + size[0], left : left + size[1]]


def noise_loss(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: int) -> float:
    """Mean squared error of the predicted noise; every form of attention gets the same noise."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
    x_t = diffuse(x, noise, noise_schedule()[t])
    errors = [predict(a[None], torch.tensor([t])) - b for a, b in zip(x_t, noise, strict=True)]
    return float(torch.stack(errors).square().mean())


def measure(path: str, window: Any, operator: Callable[..., Any], sigma_y: float, size: Size) -> Measurement:
    """The central slice of a volume, scaled to `size`."""
    whole: Any = size[0] if size[0] == size[1] else size
    torch.manual_seed(0)
    return VolumeDataModule(path, operator, sigma_y, slices=1, window=window).simulate(whole).measurement


def dds(measurement: Measurement, prior: str, way: Way, steps: int) -> Tensor:
    """DDS with the settings of configs/method/dds.yaml, except for the steps and the planes."""
    method = Reconstruction(prior, DDS(15), sampler=Sampler(steps=steps, planes="slices"))
    attend(method.denoiser.network, way)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return method.reconstruct(measurement).tensor


def denoise(x: Tensor, prior: str, t: int) -> tuple[float, float]:
    """PSNR of denoised images at a timestep, by the network's posterior mean and by total variation."""
    abar = noise_schedule()[t]
    x_t = diffuse(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(t)), abar)
    mean = tweedie(x_t, load_prior(prior)(x_t, torch.full((len(x),), t)), abar)
    everything = SingleCoilMRI((len(x), *x.shape[2:]), torch.ones(x.shape[2:]))  # unitary
    sigma = float(((1 - abar) / abar).sqrt())
    noisy = Measurement(everything(x_t / abar.sqrt()), everything, sigma, x)
    return psnr(mean, noisy), best_tv(noisy, (0.3, 0.5, 0.7, 1.0))


def best_tv(measurement: Measurement, strengths: Sequence[float]) -> float:
    """PSNR of total variation with the best of these strengths, in units of sigma_y."""
    return max(psnr(tv_reconstruction(measurement, s * measurement.sigma_y, 3e-3), measurement) for s in strengths)


def psnr(images: Tensor, measurement: Measurement) -> float:
    assert measurement.reference is not None
    return summary(images, measurement.reference)["psnr"]


def forward_pass(prior: str, way: str, size: Size, slices: int) -> tuple[float, float]:
    """Seconds of a forward pass, and the memory in MB that it adds to the process."""
    torch.set_grad_enabled(False)
    network = load_prior(prior)
    attend(network, WAYS[way])
    x, t = torch.randn(slices, network.in_channels, *size), torch.zeros(slices)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        network(x, t)
        seconds.append(time.perf_counter() - clock)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def row(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def head(*cells: object) -> None:
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def image_size(text: str) -> Size:
    lengths = [int(length) for length in text.split("x")]
    return lengths[0], lengths[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default=SHIPPED_PRIORS[1])
    parser.add_argument("--sizes", nargs="+", type=image_size, help="as 256 or 384x320",
                        default=[(128, 128), (192, 192), (256, 256), (384, 320), (512, 512)])  # fmt: skip
    parser.add_argument("--phantoms", type=int, default=4, help="at each size; 0 leaves them out")
    parser.add_argument("--ct", nargs="*", default=[], help="volumes in HU")
    parser.add_argument("--mri", nargs="*", default=[], help="other volumes")
    parser.add_argument("--steps", type=int, default=10, help="diffusion steps of DDS")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="must include tokens if --phantoms is not 0"
    )
    parser.add_argument("--slices", type=int, nargs="*", default=[1, 2, 4], help="of the forward passes")
    arguments = parser.parse_args()
    for name in ("lightning.pytorch", "ddip_pl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_grad_enabled(False)
    prior, ways = arguments.prior, arguments.ways
    trained = load_prior(prior).config.image_size

    networks = {way: load_prior(prior) for way in ways}
    for way, network in networks.items():
        attend(network, WAYS[way])

    def in_tiles(x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in tiles of the trained size, where attention works as in training."""
        return tiled(lambda part: networks["tokens"](part, t.expand(len(part))), x_t, trained)

    if arguments.phantoms:
        head("phantoms", "t", *ways, f"tiles of {trained}")
        for size in arguments.sizes:
            x = drawn(arguments.phantoms, size)
            for t in TIMESTEPS:
                losses = [noise_loss(network, x, t) for network in networks.values()]
                row("x".join(map(str, size)), t, *losses, noise_loss(in_tiles, x, t))

    mri = partial(SingleCoilMRI, mask=PoissonDisc(acceleration=8, centre=0.08))
    ct = partial(ParallelBeamCT, angles=60)
    tasks = [("sv_ct", path, (-1000.0, 1000.0), ct, 2e-4) for path in arguments.ct]
    tasks += [("mri_3d", path, None, mri, 0.01) for path in arguments.mri]
    if tasks:
        head("volume", "size", *(f"denoised at t = {t}, network / TV" for t in DENOISING))
    for _, path, window, _, _ in tasks:
        for size in arguments.sizes:
            m = measure(path, window, lambda shape: SingleCoilMRI(shape, torch.ones(shape[1:])), 0.0, size)
            assert m.reference is not None
            scores = [denoise(m.reference, prior, t) for t in DENOISING]
            row(Path(path).name, "x".join(map(str, size)), *(f"{net:.2f} / {tv:.2f}" for net, tv in scores))
    if tasks:
        head("volume", "task", "size", "input", *ways, "TV")
    for task, path, window, operator, sigma_y in tasks:
        for size in arguments.sizes:
            try:
                m = measure(path, window, operator, sigma_y, size)
            except InputError:  # CT images are square
                continue
            figures = [psnr(dds(m, prior, WAYS[way], arguments.steps), m) for way in ways]
            row(
                Path(path).name,
                task,
                "x".join(map(str, size)),
                psnr(m.operator.pseudo_inverse(m.y), m),
                *figures,
                best_tv(m, (0.01, 0.03, 0.1)),
            )

    if arguments.slices:
        head("forward pass", "slices", *(f"{way}, s / MB" for way in ways))
        for slices in arguments.slices:
            cells = []
            for way in ways:
                with multiprocessing.get_context("spawn").Pool(1) as fresh:  # peak memory of a process never falls
                    seconds, megabytes = fresh.apply(forward_pass, (prior, way, arguments.sizes[-1], slices))
                cells.append(f"{seconds:.2f} / {megabytes:.0f}")
            row("x".join(map(str, arguments.sizes[-1])), slices, *cells)


if __name__ == "__main__":
    main()
