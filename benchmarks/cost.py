"""Where the time of a run goes, and how far each part is from what the machine could do.

Every part of the run (network in sampling and adaptation, gradients, operator, conjugate gradients, output files, and
the rest) is timed on its own, without the parts that it calls. A second run counts its floating-point operations and
the bytes that its kernels read and write. The floor of a part is what these take at the machine's own speed of a matrix
product and of copying memory, measured first; a multiply-add counts as two operations.

    python benchmarks/cost.py --method d3ip --task sv_ct --volume ct_thorax.nii.gz --slices 8 --output cost.json

All other options are passed on as for `ddip-pl test`, such as --model.sampler.steps 10.
"""

import argparse
import json
import logging
import math
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning import seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import ddip_pl.physics.operator
import ddip_pl.solvers.admm
from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.data.simulated import SIZE
from ddip_pl.methods.configs import find_configs
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.reconstruction.method import Method
from ddip_pl.results.result import Result

REST = "everything else"
aten = torch.ops.aten


class Parts:
    """The parts of a run that are under way, the innermost last, and the seconds spent in each."""

    def __init__(self, device: str):
        self.stack, self.device = [REST], device
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = self.now()

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside as this part."""
        self.switch(lambda: self.stack.append(name))
        try:
            yield
        finally:
            self.switch(self.stack.pop)

    def switch(self, change: Callable[[], Any]) -> None:
        now = self.now()
        self.seconds[self.stack[-1]] += now - self.since
        change()
        self.since = now

    def watch(self, function: Callable[..., Any], name: str | Callable[[], str]) -> Callable[..., Any]:
        """The same function, timed as a part."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of all runs inside."""

        def network() -> str:
            return f"network, {'adaptation' if torch.is_grad_enabled() else 'sampling'}"

        kinds = {kind for kind in subclasses(LinearOperator) if kind.__module__.startswith("ddip_pl.")}
        watched = [(kind, name, "operator") for kind in kinds for name in ("forward", "adjoint", "normal")]
        watched += [(Denoiser, "forward", network), (torch.Tensor, "backward", "gradients")]
        watched += [(torch.optim.AdamW, "step", "optimiser"), (torch.optim.Adam, "step", "optimiser")]
        watched += [(ddip_pl.physics.operator, "conjugate_gradient", "conjugate gradients")]
        watched += [
            (ddip_pl.solvers.admm, "admm_step", "ADMM"),
            (Result, "metrics", "metrics"),
            (Result, "save", "files"),
        ]
        with ExitStack() as stack:
            for owner, name, part in watched:
                if name in vars(owner):
                    stack.enter_context(patch.object(owner, name, self.watch(vars(owner)[name], part)))
            yield


class Counter(TorchDispatchMode):
    """Counts floating-point operations and bytes of each part."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.flops: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            part = self.parts.stack[-1]
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.flops[part] += operations(func, args, kwargs or {}, out)
            self.bytes[part] += sum(size(tensor) for tensor in tensors)
        return out


def operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of a kernel; one for each value of those that do little with it."""
    packet = func.overloadpacket
    if packet in (aten.mm, aten.addmm) and (sparse := [a for a in args if isinstance(a, Tensor) and is_sparse(a)]):
        return 2 * sparse[0].values().numel() * out.shape[-1]
    if packet in (aten._fft_r2c, aten._fft_c2r, aten._fft_c2c):
        lengths = math.prod(max(args[0].shape[d], out.shape[d]) for d in args[1])
        values = max(args[0].numel(), out.numel())
        return int((5 if packet == aten._fft_c2c else 2.5) * values * math.log2(lengths))
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    return sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def is_sparse(tensor: Tensor) -> bool:
    return tensor.layout == torch.sparse_csr


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's values, and of its indices if it is sparse."""
    if is_sparse(tensor):
        return sum(size(part) for part in (tensor.values(), tensor.col_indices(), tensor.crow_indices()))
    return tensor.numel() * tensor.element_size()


def subclasses(kind: type) -> set[type]:
    """All direct and indirect subclasses, and the class itself."""
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def speed(work: Callable[[], object], parts: Parts, amount: float, repeats: int = 5) -> float:
    """Amount of work per second; the best of a few repeats, after a warm-up."""
    work()
    best = math.inf
    for _ in range(repeats):
        start = parts.now()
        work()
        best = min(best, parts.now() - start)
    return amount / best


def machine(device: str) -> dict[str, Any]:
    """What the run ran on, with its speed in operations and bytes per second."""
    clock = Parts(device)
    a, large = torch.rand(2048, 2048, device=device), torch.rand(2**26, device=device)
    copy = torch.empty_like(large)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "machine": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "flops_per_s": speed(lambda: a @ a, clock, 2 * 2048**3),
        "bytes_per_s": speed(lambda: copy.copy_(large), clock, 2 * 2**28),
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("ddip_pl", "torch", "lightning")},
    }


def run(method: Method, scan: Any, device: str, seed: int) -> float:
    """A whole run with its metrics and files; returns the PSNR."""
    torch.manual_seed(seed)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        result = method.reconstruct(scan.measurement.to(device), scan.frame)
        psnr = result.metrics()["psnr"]
        result.save(Path(folder) / "result")
    return psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, required=True, help="name or file")
    parser.add_argument("--method", type=Path, required=True, help="name or file")
    parser.add_argument("--volume", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=8, help="central slices of the volume")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file")
    args, more = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(args.threads)

    given = ["--config", str(args.task), "--config", str(args.method), "--data.path", str(args.volume)]
    settings = make_parser("test")
    made = settings.instantiate(settings.read(find_configs([*given, "--data.slices", str(args.slices), *more])))
    seed_everything(0, verbose=False)
    method = made.model.to(args.device)
    scan = made.data.simulate(made.data.size or method.image_size or SIZE)

    about = machine(args.device)
    timed, counted = Parts(args.device), Parts(args.device)
    with timed.watching():
        timed.since = timed.now()
        psnr = run(method, scan, args.device, seed=0)
        timed.switch(lambda: None)
    with counted.watching(), Counter(counted) as counter:
        run(method, scan, args.device, seed=0)

    table = Table("part", "s", "share", "GFLOP", "GB", "floor (s)", "time / floor")
    rows, total = [], sum(timed.seconds.values())
    for part, seconds in sorted(timed.seconds.items(), key=lambda item: -item[1]):
        flops, moved = counter.flops[part], counter.bytes[part]
        floor = max(flops / about["flops_per_s"], moved / about["bytes_per_s"])
        rows.append({"part": part, "seconds": seconds, "flops": flops, "bytes": moved, "floor": floor})
        ratio = f"{seconds / floor:.1f}" if floor > 1e-3 else ""
        table.add_row(
            part,
            f"{seconds:.2f}",
            f"{seconds / total:.0%}",
            f"{flops / 1e9:.1f}",
            f"{moved / 1e9:.1f}",
            f"{floor:.2f}",
            ratio,
        )
    console = Console()
    speeds = f"{about['flops_per_s'] / 1e9:.0f} GFLOP/s, {about['bytes_per_s'] / 1e9:.1f} GB/s"
    what = f"{args.method.stem}, {args.task.stem}, {args.slices} slices: {total:.1f} s, {psnr:.2f} dB"
    console.print(f"{about['machine']}: {speeds}; torch {about['versions']['torch']}; {what}", highlight=False)
    console.print(table)
    if args.output:
        about |= {"command": sys.argv[1:], "psnr": psnr, "seconds": total, "parts": rows}
        args.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
