"""Phantoms per second from the same ellipses: ODL one by one, like the published code, against our batches."""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from odl.core.discr.discr_space import uniform_discr
from odl.core.phantom.geometric import ellipsoid_phantom
from torch import Tensor

from ddip_pl.prior.phantoms import RandomEllipses, Variant, phantoms

VARIANTS: tuple[Variant, ...] = ("uniform", "disk")


def with_odl(ellipses: list[np.ndarray], size: int) -> np.ndarray:
    """The published loop: sum of ellipses, shift of the foreground, division by the maximum."""
    space = uniform_discr([-1, -1], [1, 1], [size, size], dtype="float32")
    images = []
    for rows in ellipses:
        image = ellipsoid_phantom(space, rows).asarray()
        image[image != 0] -= image.min()
        images.append(image / image.max())
    return np.stack(images)


def ours(ellipses: Tensor, size: int) -> Tensor:
    """Images on the device of the ellipses; waits until they are computed."""
    images = phantoms(ellipses, size)
    if images.is_cuda:
        torch.cuda.synchronize()
    return images


def per_second(run: Callable[[], object], count: int, repeats: int) -> float:
    """Phantoms per second if `run()` makes `count`: median of the repeats, after one warm-up call."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="image sizes in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: on the GPU too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if args.device == "cuda" and torch.cuda.is_available() else ["cpu"]

    print(f"phantoms per second; odl {version('odl')}, torch {version('torch')}; 1 thread, batches of {args.batch}")
    if args.device == "cuda":
        print(f"GPU: {torch.cuda.get_device_name()}" if len(devices) > 1 else "GPU: none available")
    print(f"\n{'variant':>8} {'pixels':>7} {'device':>7} {'ODL':>9} {'ours':>9} {'ratio':>8} {'difference':>11}")
    for variant in VARIANTS:
        dataset = RandomEllipses(args.batch, 0, variant)
        padded = np.stack([dataset[i]["ellipses"] for i in range(args.batch)])
        drawn = [rows[rows[:, 1] > 0] for rows in padded]
        for size in args.sizes:
            reference = with_odl(drawn, size)
            theirs = per_second(partial(with_odl, drawn, size), args.batch, args.repeats)
            for device in devices:
                ellipses = torch.from_numpy(padded).to(device)
                difference = abs(ours(ellipses, size)[:, 0].cpu().numpy() - reference).max()
                rate = per_second(partial(ours, ellipses, size), args.batch, 3 * args.repeats)
                print(
                    f"{variant:>8} {size:>7} {device:>7} {theirs:>9.0f} {rate:>9.0f} {rate / theirs:>7.1f}x"
                    f" {difference:>11.0e}"
                )


if __name__ == "__main__":
    main()
