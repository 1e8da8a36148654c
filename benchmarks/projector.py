"""Ray transform of many slices: ODL on ASTRA's CPU projector, slice by slice, against our sparse matrix."""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from odl.applications.tomo.geometry.parallel import Parallel2dGeometry
from odl.applications.tomo.operators.ray_trafo import RayTransform
from odl.core.discr.discr_space import uniform_discr
from odl.core.discr.partition import uniform_partition

from ddip_pl.physics import ParallelBeamCT


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of `run()` in milliseconds, after one warm-up call."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def odl_ray_transform(size: int, angles: int, detectors: int) -> RayTransform:
    """ODL's ray transform of the same geometry."""
    space = uniform_discr([-size / 2] * 2, [size / 2] * 2, [size] * 2, dtype="float32")
    step = math.pi / angles
    directions = uniform_partition(-step / 2, math.pi - step / 2, angles)
    bins = uniform_partition(-detectors / 2, detectors / 2, detectors)
    return RayTransform(space, Parallel2dGeometry(directions, bins), impl="astra_cpu")


def one_by_one(operator: Callable[[object], object], elements: list[object]) -> None:
    for element in elements:
        operator(element)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="image size in pixels")
    parser.add_argument("--angles", type=int, default=60)
    parser.add_argument("--slices", type=int, nargs="+", default=[32, 3])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as folder:
        make = partial(ParallelBeamCT, (1, args.size, args.size), args.angles, cache_dir=folder)
        start = time.perf_counter()
        ours = make()
        built = time.perf_counter()
        make()
        loaded = time.perf_counter()
    theirs = odl_ray_transform(args.size, args.angles, ours.detectors)

    versions = ", ".join(f"{name} {version(name)}" for name in ("odl", "astra-toolbox", "torch"))
    print(f"{versions}; {args.threads} thread(s)")
    print(f"{args.size}x{args.size} pixels, {args.angles} angles, {ours.detectors} detectors")
    print(f"{len(ours.matrix_values):,} non-zeros, built in {built - start:.2f} s", end=", ")
    print(f"read from the cache in {loaded - built:.2f} s\n")

    x = torch.rand(1, 1, args.size, args.size)
    sinogram = torch.from_numpy(theirs(theirs.domain.element(x[0, 0].numpy())).asarray())
    error = torch.dist(ours.scale * ours(x)[0, 0], sinogram) / torch.linalg.vector_norm(sinogram)
    print(f"relative difference of the two forward projections: {error:.1e}\n")

    print(f"{'ms per slice':>16} {'slices':>7} {'ODL':>8} {'ours':>8} {'ratio':>8}")
    for slices in args.slices:
        x = torch.rand(slices, 1, args.size, args.size)
        y = torch.rand(slices, 1, args.angles, ours.detectors)
        for name, run, run_odl, batch in (
            ("forward", ours, theirs, x),
            ("adjoint", ours.adjoint, theirs.adjoint, y),
        ):
            elements = [run_odl.domain.element(image.numpy()) for image in batch[:, 0]]
            slicewise = median_ms(partial(one_by_one, run_odl, elements), args.repeats)
            at_once = median_ms(partial(run, batch), args.repeats)
            print(
                f"{name:>16} {slices:>7} {slicewise / slices:>8.2f} {at_once / slices:>8.2f}"
                f" {slicewise / at_once:>7.1f}x"
            )


if __name__ == "__main__":
    main()
