"""How much memory the network takes for an image, found by watching what it allocates for a small one."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROBE = 64  # pixels; activations grow with the area of an image


class Allocations(TorchDispatchMode):
    """Adds up the memory of the (dense) tensors that operations return, for as long as they live.

    Attributes:
        bytes: allocated now.
        peak: the most that was allocated at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.watch(tensor.untyped_storage())
        return out

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; views share the storage of their tensor."""
        address, size = storage._cdata, storage.nbytes()
        if address not in self.live:
            self.live.add(address)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.free, address, size)

    def free(self, address: int, size: int) -> None:
        self.live.discard(address)
        self.bytes -= size


def bytes_per_pixel(network: nn.Module, channels: int, device: torch.device, training: bool = False) -> float:
    """Peak memory of activations for one image, in bytes per pixel.

    Args:
        network: `network(x, t) -> eps`.
        channels: of an image.
        device: of the network.
        training: whether activations are kept for the gradients of all weights.
    """
    weights = {name: weight.detach().requires_grad_(training) for name, weight in network.named_parameters()}
    x = torch.zeros(1, channels, PROBE, PROBE, device=device)
    with torch.set_grad_enabled(training), Allocations() as allocations:
        functional_call(network, weights, (x, x.new_zeros(1)))
    return allocations.peak / PROBE**2
