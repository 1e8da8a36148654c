"""A reconstructed volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics.measurement import Measurement
from ddip_pl.volumes.frame import Frame


@dataclass(frozen=True)
class Result:
    """A reconstructed volume and how it came about.

    Attributes:
        images: `(slices, channels, height, width)`, with padding; 0 where nothing is measured.
        measurement: what they were reconstructed from.
        trajectory: figures of each step (diffusion step, or iteration of a baseline), `seconds` among them.
        weights: the adapted weights; empty where nothing was adapted.
        frame: where the volume belongs.
        peak_memory_bytes: see `peak_memory`.
        prior: file of the prior, if there was one.
    """

    images: Tensor
    measurement: Measurement
    trajectory: Sequence[dict[str, float]]
    weights: AdaptedWeights = field(default_factory=AdaptedWeights)
    frame: Frame = field(default_factory=Frame)
    peak_memory_bytes: int = 0
    prior: str | None = None
