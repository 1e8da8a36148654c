"""Reconstruction of a measured volume: a method, composed of a prior, an estimator and an adaptation."""

import resource
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.adaptation.none import NoAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators.dds import DDS
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.denoiser import COLUMNS, ROWS, SLICES, Denoiser, Plane
from ddip_pl.prior.schedule import STEPS
from ddip_pl.reconstruction.loop import ReconstructionTrainer

SHIPPED_PRIOR = str(files("ddip_pl") / "weights" / "ellipses_128.safetensors")

THINNEST = 8  # slices; images of one row or three made the result worse (docs/results/prior.md)


@dataclass
class Result:
    """A reconstructed volume.

    Attributes:
        measurement: what it was reconstructed from.
        images: `(slices, channels, height, width)`, with padding.
        trajectory: figures of each diffusion step.
        weights: adapted weights by name.
        peak_memory_bytes: largest memory so far: allocated on the GPU, or of the whole process on a CPU.
    """

    measurement: Measurement
    images: Tensor
    trajectory: list[dict[str, float]]
    weights: dict[str, Tensor]
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Time of all diffusion steps, in whichever process they ran."""
        return sum(row["seconds"] for row in self.trajectory)


class Reconstruction(LightningModule):
    """Test-time reconstruction; runs in a `ReconstructionTrainer`.

    Args:
        prior: file with the prior, see `load_prior`; by default the shipped one.
        estimator: `D_theta(x_t | y)`; by default DDS.
        adaptation: of the prior to the measurement; by default none.
        steps: number of diffusion steps.
        start: T', the first timestep, 0 .. 999.
        spacing: of the timesteps, see `timesteps`; 1 spaces them evenly, as published.
        eta: share of fresh noise in a DDIM step, 0 .. 1.
        planes: the prior denoises "slices" only, as published, or at each step the next one of "all" three planes
            (in volumes of at least 8 slices; fewer are too thin to be cut across).
        averaging: share of the earlier posterior means in the running average that a step goes on from, 0 .. 1 (without
            1); each of them comes from noise of its own, and their average is nearer to the truth than one of them.
        batch_size: slices that are sampled at once.
    """

    def __init__(
        self,
        prior: str | None = None,
        estimator: PosteriorMean | None = None,
        adaptation: Adaptation | None = None,
        steps: int = 50,
        start: int = 980,
        spacing: float = 1.0,
        eta: float = 0.85,
        planes: Literal["slices", "all"] = "slices",
        averaging: float = 0.0,
        batch_size: int = 8,
    ):
        super().__init__()
        if not 1 <= steps <= start + 1 <= STEPS:
            raise InputError(f"{steps} steps from timestep {start}; give 1 <= steps <= start + 1 <= {STEPS}")
        if not spacing > 0:
            raise InputError(f"model.spacing is {spacing}; give a positive power, 1 for even timesteps")
        if not 0 <= eta <= 1:
            raise InputError(f"model.eta is {eta}; give a share between 0 and 1")
        if not 0 <= averaging < 1:
            raise InputError(f"model.averaging is {averaging}; give a share of at least 0 and below 1")
        if batch_size < 1:
            raise InputError(f"model.batch_size is {batch_size}; give at least 1")
        self.prior = prior or SHIPPED_PRIOR
        self.denoiser = Denoiser(load_prior(self.prior), batch_size).requires_grad_(False)
        self.estimator = estimator or DDS()
        self.adaptation = adaptation or NoAdaptation()
        self.steps, self.start, self.spacing = steps, start, spacing
        self.eta, self.averaging = eta, averaging
        self.planes = planes
        # The prior has a file of its own; a checkpoint holds the state of the loop and nothing that is frozen.
        self.strict_loading = False

    def test_step(self, measurement: Measurement, batch_idx: int) -> Result:  # type: ignore[override]
        assert isinstance(self.trainer, ReconstructionTrainer), "use ReconstructionTrainer instead of Trainer"
        loop = self.trainer.reverse_diffusion
        images = loop.run(measurement)
        return Result(measurement, images, loop.trajectory, loop.weights, peak_memory(self.device))

    predict_step = test_step

    def planes_of(self, measurement: Measurement) -> tuple[Plane, ...]:
        """The planes that the prior denoises in turn."""
        thin = len(measurement) < THINNEST
        return (SLICES,) if self.planes == "slices" or thin else (SLICES, ROWS, COLUMNS)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}


def peak_memory(device: torch.device) -> int:
    """Largest memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
