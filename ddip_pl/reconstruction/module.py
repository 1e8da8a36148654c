"""Reconstruction of a measured volume: what a method is, and the one composed of prior, estimator and adaptation."""

import logging
from abc import ABC, abstractmethod
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
from ddip_pl.reconstruction.memory import peak_memory

WEIGHTS = files("ddip_pl") / "weights"
SHIPPED_PRIORS = {  # by image channels
    1: str(WEIGHTS / "ellipses_128.safetensors"),
    2: str(WEIGHTS / "ellipses_128_complex.safetensors"),
}
SHIPPED_SIZE = 128

SMALLEST, LARGEST = 0.5, 4  # image sizes that the prior is good for, as shares of its own (docs/sizes.md)
THINNEST = 8  # slices; images of one row or three made the result worse (docs/results/prior.md)

log = logging.getLogger(__name__)


@dataclass
class Result:
    """A reconstructed volume.

    Attributes:
        measurement: what it was reconstructed from.
        images: `(slices, channels, height, width)`, with padding.
        trajectory: figures of each step (diffusion step, or iteration of a baseline), `seconds` among them.
        weights: adapted weights by name; none where nothing was adapted.
        peak_memory_bytes: see `peak_memory`.
    """

    measurement: Measurement
    images: Tensor
    trajectory: list[dict[str, float]]
    weights: dict[str, Tensor]
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Time of all steps, in whichever process they ran."""
        return sum(row["seconds"] for row in self.trajectory)


class Method(LightningModule, ABC):
    """A way to reconstruct a volume: what the command line can choose, the data module asks and the writer writes.

    Attributes:
        prior: file with the prior, or None for a method that has none.
        image_size: height and width that the prior is made for, or None.
    """

    prior: str | None = None
    image_size: int | None = None

    @abstractmethod
    def test_step(self, measurement: Measurement, batch_idx: int) -> Result:  # type: ignore[override]
        """Reconstruct all slices of a measurement."""

    def on_test_batch_start(self, *_: Any) -> None:
        """Draw the random numbers, and count the memory, that the volume would have by itself."""
        torch.manual_seed(torch.initial_seed())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    on_predict_batch_start = on_test_batch_start  # type: ignore[assignment]

    def predict_step(self, measurement: Measurement, batch_idx: int) -> Result:  # type: ignore[override]
        return self.test_step(measurement, batch_idx)


class Reconstruction(Method):
    """Test-time reconstruction with a diffusion prior; runs in a `ReconstructionTrainer`.

    Args:
        prior: file with the prior, see `load_prior`; by default the shipped one for real or for complex images.
        estimator: `D_theta(x_t | y)`; by default DDS.
        adaptation: of the prior to the measurement; by default none.
        steps: number of diffusion steps.
        start: T', the first timestep, 0 .. 999.
        spacing: of the timesteps, see `timesteps`; 1 spaces them evenly, as published.
        eta: share of fresh noise in a DDIM step, 0 .. 1.
        initial_noise: "interpolated" from the first slice to the last one (D3IP), or "independent" in each slice.
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
        initial_noise: Literal["interpolated", "independent"] = "interpolated",
        planes: Literal["slices", "all"] = "slices",
        averaging: float = 0.0,
        batch_size: int = 8,
    ):
        super().__init__()
        if not 1 <= steps <= start + 1 <= STEPS:
            raise InputError(f"{steps} steps from timestep {start}; give 1 <= steps <= start + 1 <= {STEPS}")
        if not 0 < spacing < float("inf"):
            raise InputError(f"model.spacing is {spacing}; give a positive power, 1 for even timesteps")
        if not 0 <= eta <= 1:
            raise InputError(f"model.eta is {eta}; give a share between 0 and 1")
        if not 0 <= averaging < 1:
            raise InputError(f"model.averaging is {averaging}; give a share of at least 0 and below 1")
        if batch_size < 1:
            raise InputError(f"model.batch_size is {batch_size}; give at least 1")
        if adaptation is not None and adaptation.slicewise and planes == "all":
            raise InputError("slices with weights of their own cannot be cut in other planes; give model.planes slices")
        self.batch_size, self.shipped, self.image_size = batch_size, prior is None, SHIPPED_SIZE
        if prior is not None:
            self.use_prior(prior)
        self.estimator = estimator or DDS()
        self.adaptation = adaptation or NoAdaptation()
        self.steps, self.start, self.spacing = steps, start, spacing
        self.eta, self.averaging = eta, averaging
        self.initial_noise, self.planes = initial_noise, planes
        # The prior has a file of its own; a checkpoint holds the state of the loop and nothing that is frozen.
        self.strict_loading = False

    def use_prior(self, path: str) -> None:
        """Load the prior."""
        network = load_prior(path)
        self.prior, self.image_size = path, network.config.image_size
        self.denoiser = Denoiser(network, self.batch_size).requires_grad_(False).to(self.device)

    def test_step(self, measurement: Measurement, batch_idx: int) -> Result:  # type: ignore[override]
        channels = measurement.operator.channels
        if self.shipped and self.prior != SHIPPED_PRIORS[channels]:
            self.use_prior(SHIPPED_PRIORS[channels])
        if self.denoiser.network.in_channels != channels:
            raise InputError(
                f"the prior has {self.denoiser.network.in_channels} image channels, "
                f"{type(measurement.operator).__name__} needs {channels}; choose another --model.prior"
            )
        self.warn_if_far(*measurement.operator.adjoint(measurement.y).shape[2:])
        if self.adaptation.slicewise and measurement.operator.coupled > 1:
            raise InputError(
                f"{type(measurement.operator).__name__} measures slices together, and the adaptation takes them one by "
                "one; choose d3ip or d3ip_mbir, or a method without adaptation"
            )
        assert isinstance(self.trainer, ReconstructionTrainer), "use ReconstructionTrainer instead of Trainer"
        loop = self.trainer.reverse_diffusion
        images = loop.run(measurement)
        return Result(measurement, images, loop.trajectory, loop.weights, peak_memory(self.device))

    def warn_if_far(self, height: int, width: int) -> None:
        """Say it if images of `height` x `width` pixels are far from the size that the prior is made for."""
        size = self.image_size
        assert size is not None, "a prior has a size"
        if not SMALLEST * size <= max(height, width) <= LARGEST * size:
            log.warning(
                "images of %d x %d pixels are far from the prior's %d x %d, results may suffer; "
                "bring volumes to data.size %d, or train a prior near this size with ddip-pl fit (docs/sizes.md)",
                height, width, size, size, size,
            )  # fmt: skip

    def planes_of(self, measurement: Measurement) -> tuple[Plane, ...]:
        """The planes that the prior denoises in turn."""
        thin = len(measurement) < THINNEST
        return (SLICES,) if self.planes == "slices" or thin else (SLICES, ROWS, COLUMNS)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}
