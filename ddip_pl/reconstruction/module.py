"""The method composed of prior, estimator, adaptation and sampler."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, OnGradientStep, ignore
from ddip_pl.adaptation.none import NoAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators.dds import DDS
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.checkpoint import WEIGHTS, load_prior
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.sizes import unsuitable
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.preflight import fit_into_memory, footprint
from ddip_pl.reconstruction.sampler import ReverseDiffusion, Sampler
from ddip_pl.reconstruction.step import Process
from ddip_pl.results.provenance import digest
from ddip_pl.results.result import Result
from ddip_pl.settings import PositiveInt, checked
from ddip_pl.volumes.frame import Frame

SHIPPED_PRIORS = {  # by image channels
    1: str(WEIGHTS / "ellipses_128.safetensors"),
    2: str(WEIGHTS / "ellipses_128_complex.safetensors"),
}
SHIPPED_SIZE = 128

log = logging.getLogger(__name__)


@checked
class Reconstruction(Method):
    """Test-time reconstruction with a diffusion prior.

    Args:
        prior: file of the prior, or its name if it is shipped or on the Hugging Face Hub, see `load_prior`; by default
            the shipped one for real or complex images.
        estimator: `D_theta(x_t | y)`; by default DDS.
        adaptation: of the prior to the measurement; by default none.
        sampler: settings of the reverse diffusion.
        batch_size: images that pass through the network at once.
        samples: number of posterior samples. With 2 or more, the result is their mean, and their standard deviation
            shows where it is uncertain. The sampler must keep its noise, as `Sampler.posterior()` does.

    Raises:
        InputError: a setting is out of range, the prior cannot be read, or two settings do not fit together.
    """

    def __init__(
        self,
        prior: str | None = None,
        estimator: PosteriorMean | None = None,
        adaptation: Adaptation | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008 (frozen)
        batch_size: PositiveInt = 8,
        samples: PositiveInt = 1,
    ):
        super().__init__()
        if samples > 1 and not sampler.keeps_noise:
            raise InputError(
                f"model.samples is {samples}, but this sampler removes the noise that samples differ by; add --config "
                "configs/sampler/posterior.yaml, in Python estimator=DDS.posterior(), sampler=Sampler.posterior()"
            )
        self.estimator = estimator or DDS()
        self.adaptation = adaptation or NoAdaptation()
        self.adaptation.check(sampler.planes)
        self.sampler, self.batch_size, self.samples = sampler, batch_size, samples
        self.shipped, self.image_size = prior is None, SHIPPED_SIZE
        if prior is not None:
            self.use_prior(prior)
        self.strict_loading = False  # checkpoints have no weights, see Method.on_save_checkpoint

    def use_prior(self, path: str) -> None:
        """Load the prior from a file."""
        network = load_prior(path)
        self.prior, self.image_size = path, network.config.image_size
        self.denoiser = Denoiser(network, self.batch_size).requires_grad_(False).to(self.device)
        if self.adaptation.trained_on and Path(path).is_file() and self.adaptation.trained_on != digest(Path(path)):
            log.warning("the weights to start from were trained on another prior than %s", Path(path).name)

    def begin(self, measurement: Measurement, on_gradient_step: OnGradientStep = ignore) -> ReverseDiffusion:
        channels = measurement.operator.channels
        if self.shipped:
            if channels not in SHIPPED_PRIORS:
                raise InputError(f"no shipped prior has {channels} image channels; give --model.prior")
            if self.prior != SHIPPED_PRIORS[channels]:
                self.use_prior(SHIPPED_PRIORS[channels])
        if self.denoiser.network.in_channels != channels:
            raise InputError(
                f"the prior has {self.denoiser.network.in_channels} image channels, "
                f"{type(measurement.operator).__name__} needs {channels}; choose another --model.prior"
            )
        assert self.image_size is not None, "a prior has a size"
        if warning := unsuitable(*measurement.operator.shape[1:], self.image_size):
            log.warning(warning)
        planes = self.sampler.planes_of(len(measurement))
        needed = footprint(measurement, self.denoiser, self.adaptation, planes, self.samples)
        fit_into_memory(needed, measurement, self.denoiser)
        return ReverseDiffusion(
            measurement, self.denoiser, self.estimator, self.adaptation, self.sampler, on_gradient_step, self.samples
        )

    def result(
        self,
        process: Process,
        images: Tensor,
        measurement: Measurement,
        frame: Frame,
        trajectory: list[dict[str, float]],
    ) -> Result:
        """The result of a process, with its samples if there are several."""
        result = super().result(process, images, measurement, frame, trajectory)
        if self.samples == 1:
            return result
        assert isinstance(process, ReverseDiffusion), "the process of this method"
        assert process.mean is not None, "it has ended"
        return replace(result, samples=torch.stack([measurement.operator.visible(x) for x in process.mean]))
