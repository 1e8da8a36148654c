"""Adapted weights as a value: the result of an adaptation, to keep, count and save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ddip_pl.prior.tensors import write_tensors


@dataclass(frozen=True, eq=False)
class AdaptedWeights:
    """Weights that replace the network's own.

    Attributes:
        tensors: by name; empty if nothing was adapted.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of adapted parameters."""
        return sum(weight.numel() for weight in self.tensors.values())

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same weights on another device; arguments as for `Tensor.to`."""
        return replace(self, tensors={name: weight.to(*args, **kwargs) for name, weight in self.tensors.items()})

    def save(self, folder: Path, prior: str = "", digest: str = "") -> None:
        """Write `weights.safetensors` into a folder, or nothing if there are none.

        Args:
            folder: of the result.
            prior: name of the prior that was adapted, for the metadata.
            digest: hash of its file.
        """
        if self.tensors:
            write_tensors(folder / "weights.safetensors", self.tensors, {"prior": prior, "prior_digest": digest})
