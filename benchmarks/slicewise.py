"""Time the gradient steps of DDIP: all slices in one batch, each with its own LoRA weights, against one by one."""

import argparse
import statistics
import time

import torch
from torch import Tensor

from ddip_pl.adaptation import LoraTraining, SlicewiseAdaptation
from ddip_pl.estimators import DDS
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.reconstruction.module import SHIPPED_PRIORS


def synchronised_clock(device: torch.device) -> float:
    """Time in seconds, after waiting for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def adapt(
    denoiser: Denoiser, measurement: Measurement, x_t: Tensor, batch_size: int, steps: int
) -> tuple[float, Tensor]:
    """Seconds for the gradient steps of all slices at one timestep, and the resulting weights."""
    denoiser.batches.size = batch_size
    adaptation = SlicewiseAdaptation(LoraTraining(steps=steps, horizon=0, ema=0, discrepancy=0))
    torch.manual_seed(0)
    adaptation.start(denoiser, measurement)
    start = synchronised_clock(x_t.device)
    adaptation.adapt(DDS(5, gamma="infinite"), x_t, 100)
    seconds = synchronised_clock(x_t.device) - start
    adaptation.finish()
    return seconds, adaptation.average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default=SHIPPED_PRIORS[1])
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="gradient steps at the timestep")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    operator = ParallelBeamCT((args.slices, args.size, args.size), angles=60)
    torch.manual_seed(0)
    x = torch.rand(args.slices, 1, args.size, args.size)
    measurement = Measurement(operator(x), operator, 0.0).to(args.device)
    x_t = torch.randn(x.shape).to(args.device)
    denoiser = Denoiser(load_prior(args.prior)).requires_grad_(False).to(args.device)

    # Alternate, so that other load on the machine affects both equally.
    pairs = [
        [adapt(denoiser, measurement, x_t, n, args.steps) for n in (1, args.slices)] for _ in range(args.repeats + 1)
    ]
    single, at_once = (statistics.median(pair[i][0] for pair in pairs[1:]) for i in range(2))
    each = 1e3 / (args.slices * args.steps)
    difference = torch.dist(pairs[0][0][1], pairs[0][1][1]) / pairs[0][0][1].norm()
    print(f"{args.slices} slices of {args.size}x{args.size}, {args.steps} gradient steps each; {args.device}, "
          f"{args.threads} thread(s), torch {torch.__version__}")  # fmt: skip
    print(f"one by one {single:8.2f} s  ({single * each:.0f} ms per slice and step)")
    print(f"at once    {at_once:8.2f} s  ({at_once * each:.0f} ms per slice and step)")
    print(f"ratio      {single / at_once:8.2f}; relative difference of the weights {difference:.0e}")


if __name__ == "__main__":
    main()
