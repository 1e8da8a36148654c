"""Posterior samples: what they are, what they share, and what becomes of them in a result."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_network, quiet_trainer
from lightning import seed_everything
from torch import Tensor, nn

from ddip_pl import load_method
from ddip_pl.adaptation import LoraTraining, NoAdaptation, VolumeAdaptation
from ddip_pl.adaptation.adaptation import Adapted
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS, DiffusionMBIR
from ddip_pl.physics import SENSE, Birdcage, ConeBeamCT, Measurement, ParallelBeamCT, RandomLines
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import ddim_step, diffuse, noise_schedule, slerp
from ddip_pl.reconstruction import Reconstruction, ReverseDiffusion, Sampler

FEW = replace(Sampler.posterior(), steps=4)


@pytest.fixture(scope="module")
def small() -> Measurement:
    """Eight slices of 16 x 16 pixels, enough to use all planes."""
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    operator = ParallelBeamCT((8, 16, 16), angles=6)
    return Measurement(operator(x), operator, 1e-3)


def begin(measurement: Measurement, samples: int, sampler: Sampler = FEW, **parts: Any) -> ReverseDiffusion:
    given = {"estimator": DDS(3), "adaptation": NoAdaptation()} | parts
    denoiser = Denoiser(make_network()).requires_grad_(False)
    torch.manual_seed(0)
    return ReverseDiffusion(measurement, denoiser, **given, sampler=sampler, samples=samples)


# --- what they are --------------------------------------------------------------------------------------------


class Half(LinearOperator):
    """Measures the left half of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] // 2]


class GaussianPrior(nn.Module):
    """The exact noise of Gaussian images with mean 0: `eps = sqrt(1 - abar) Cov(x_t)^-1 x_t`."""

    def __init__(self, covariance: Tensor):
        super().__init__()
        self.variances, self.axes = torch.linalg.eigh(covariance)
        self.abar = noise_schedule()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.abar[int(t[0])]
        scaled = (1 - abar).sqrt() / (abar * self.variances + 1 - abar)
        return (x.flatten(1) @ self.axes * scaled @ self.axes.T).view(x.shape)


def test_samples_of_a_gaussian_have_the_exact_posterior() -> None:
    """Smooth images of which half the pixels are measured: the others are the less known the farther they are."""
    size, length = 8, 1.5
    places = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float32)] * 2)
    covariance = 0.04 * torch.exp(-(torch.cdist(places, places) ** 2) / (2 * length**2)) + 1e-4 * torch.eye(size**2)
    truth = torch.linalg.cholesky(covariance) @ torch.randn(size**2, generator=torch.Generator().manual_seed(3))
    operator = Half((10, size, size))  # ten slices that are alike give ten times the samples
    measurement = Measurement(operator(truth.view(1, 1, size, size).repeat(10, 1, 1, 1)), operator, 1e-4)

    seen = (places[:, 1] < size // 2).nonzero()[:, 0]
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen]).T
    exact_mean = (gain @ truth[seen]).view(size, size)
    exact = (covariance - gain @ covariance[seen]).diagonal().clamp(min=0).sqrt().view(size, size)
    unseen = exact > 0.05
    assert torch.equal(unseen.nonzero()[:, 1].unique(), torch.arange(size // 2, size))

    def drawn(sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of many samples."""
        torch.manual_seed(0)
        prior = Denoiser(GaussianPrior(covariance), batch_size=10)
        settings = replace(sampler, steps=50, planes="slices", initial_noise="independent")
        run = ReverseDiffusion(measurement, prior, DDNM(1), NoAdaptation(), settings, samples=20)
        list(run.iterate())
        assert run.mean is not None
        drawn = run.mean.view(-1, size, size)
        return drawn.mean(0), drawn.std(0)

    mean, found = drawn(Sampler.posterior())
    assert float(found[~unseen].max()) < 1e-3
    ratio = found[unseen] / exact[unseen]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.1)
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.3
    assert float(((mean - exact_mean) / exact)[unseen].square().mean().sqrt()) < 0.5

    _, alike = drawn(Sampler())  # of which a method draws no samples
    assert float((alike / exact)[unseen].mean()) < 0.7


# --- how they are drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [Sampler(), Sampler.published(), Sampler.posterior()], ids=lambda s: f"{s.eta:g}")
def test_one_sample_is_the_plain_loop_bit_for_bit(small: Measurement, sampler: Sampler) -> None:
    sampler = replace(sampler, steps=5)
    diffusion = begin(small, 1, sampler)
    found = [step.images["estimate"] for step in diffusion.iterate()]
    denoiser, estimator, noise = diffusion.denoiser, DDS(3), torch.Generator().manual_seed(0)
    guess = small.operator.pseudo_inverse(small.y)
    if sampler.initial_noise == "interpolated":
        first = slerp(*torch.randn(2, *guess.shape[1:], generator=noise), len(guess))
    else:
        first = torch.randn(guess.shape, generator=noise)
    x, average = diffuse(guess, first, denoiser.abar[sampler.timesteps[0]]), None
    planes = sampler.planes_of(len(small))
    for i, (t, t_next) in enumerate(zip(sampler.timesteps, (*sampler.timesteps[1:], 0), strict=True)):
        mean, eps, _ = estimator(denoiser.across(planes[i % len(planes)]), x, t, small)
        average = mean if average is None else mean.lerp(average, sampler.averaging)
        assert torch.equal(found[i], average)
        fresh = torch.randn(x.shape, generator=noise)
        if t_next > sampler.noise_above:
            x = ddim_step(average, eps, fresh, denoiser.abar[t_next], sampler.eta)
        else:
            x = denoiser.abar_at(t_next or None).sqrt() * average


def test_every_sample_is_the_run_from_its_own_noise(small: Measurement) -> None:
    """With eta 0 only the initial noise is random; the first sample has that of a run with one sample."""
    several, one = begin(small, 3), begin(small, 1)
    *_, last = several.iterate()
    *_, alone = one.iterate()
    assert several.mean is not None
    assert torch.equal(several.mean[0], alone.images["estimate"])
    assert torch.equal(last.images["estimate"], several.mean.mean(0))
    assert float(several.mean.std(0).mean()) > 0.01


def test_the_prior_adapts_once_per_timestep_whatever_the_number_of_samples(small: Measurement) -> None:
    seen: list[Tensor] = []

    class Spy(NoAdaptation):
        def adapt(self, estimator: Any, x_t: Tensor, *arguments: Any) -> Adapted:
            seen.append(x_t)
            return super().adapt(estimator, x_t, *arguments)

    diffusion = begin(small, 3, adaptation=Spy())
    states = [diffusion.state_dict()["x"] for _ in diffusion.iterate()]
    assert len(seen) == 4
    assert all(torch.equal(x_t, x[0]) for x_t, x in zip(seen[1:], states, strict=False))


PARTS = {
    "dds": dict,
    "mbir": lambda: {"estimator": DiffusionMBIR(1e-2, 1e-1, iterations=2, cg_iterations=2, discrepancy=0)},
    "d3ip": lambda: {"adaptation": VolumeAdaptation(2, training=LoraTraining(steps=1, discrepancy=0))},
}


@pytest.mark.parametrize("name", PARTS)
def test_samples_go_on_from_any_state_bit_for_bit(small: Measurement, name: str) -> None:
    sampler = replace(FEW, eta=0.5)
    whole = begin(small, 3, sampler, **PARTS[name]())
    states = [whole.state_dict() for _ in whole.iterate()]
    assert whole.mean is not None
    for state in states[:-1]:
        again = begin(small, 3, sampler, **PARTS[name]())
        torch.manual_seed(1)
        *_, last = again.iterate(state)
        assert again.mean is not None
        assert torch.equal(again.mean, whole.mean)
        assert torch.equal(last.images["estimate"], whole.mean.mean(0))


def test_the_state_of_another_number_of_samples_is_refused(small: Measurement) -> None:
    diffusion = begin(small, 3)
    next(diffusion.iterate())
    with pytest.raises(InputError, match="the checkpoint is of 3 x 8 slices, 4 steps from 300; give the data"):
        next(begin(small, 2).iterate(diffusion.state_dict()))


# --- what becomes of them -------------------------------------------------------------------------------------


def test_from_the_trainer_to_the_files(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    """The deviation is in the units of the volume, 2000 for each unit of an image, without its offset of -1000."""
    seed_everything(0, verbose=False)
    data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 1e-3, window=(-1000, 1000))
    module = Reconstruction(str(tiny_prior), DDS(3), sampler=FEW, samples=3)
    (result,) = quiet_trainer().predict(module, data)  # type: ignore[misc]
    assert result.samples.shape == (3, 6, 1, 32, 32)  # type: ignore[union-attr]
    assert torch.allclose(result.samples.mean(0), result.images, atol=1e-6)  # type: ignore[union-attr]
    result.save(tmp_path / "run")  # type: ignore[union-attr]
    volume = nib.load(tmp_path / "run" / "reconstruction.nii.gz")
    deviation = nib.load(tmp_path / "run" / "standard_deviation.nii.gz")
    expected = 2000 * result.frame.unpad(result.samples.std(0))[:, 0].numpy().transpose(2, 1, 0)  # type: ignore[union-attr]
    assert np.allclose(deviation.get_fdata(), expected, rtol=1e-4, atol=1e-2)
    assert np.array_equal(deviation.affine, volume.affine)
    facts = result.facts()  # type: ignore[union-attr]
    assert facts["samples"] == 3
    assert facts["standard_deviation"] == pytest.approx(expected.mean(), rel=1e-4)


def test_coupled_slices(tiny_prior: Path) -> None:
    operator = ConeBeamCT((4, 32, 32), 9, iterations=3)
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    measurement = Measurement(operator(x), operator, 1e-3)
    result = Reconstruction(str(tiny_prior), DDS(3), sampler=FEW, samples=2).reconstruct(measurement)
    assert result.samples is not None
    assert result.samples.shape == (2, 4, 1, 32, 32)
    assert result.standard_deviation is not None
    assert float(result.standard_deviation.mean()) > 0.01
    assert operator(result.null_space).norm() < 1e-2 * operator(result.tensor).norm()
    # An orthogonal projection: x is the sum of two parts that are orthogonal to each other.
    kept = result.tensor - result.null_space
    assert abs(float((kept * result.null_space).sum())) < 0.05 * float(kept.norm() * result.null_space.norm())
    assert float(result.null_space.norm()) > 0.1 * float(kept.norm())


def test_complex_images_have_the_deviation_of_their_magnitude(tmp_path: Path) -> None:
    prior = tmp_path / "complex.safetensors"
    save_prior(prior, make_network(in_channels=2, out_channels=2), card={}, dtype=torch.float32)
    operator = SENSE((3, 32, 32), mask=RandomLines(2), maps=Birdcage(2))
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    measurement = Measurement(operator(x), operator, 1e-3)
    result = Reconstruction(str(prior), DDS(3), sampler=FEW, samples=3).reconstruct(measurement)
    assert result.samples is not None
    assert result.standard_deviation is not None
    expected = np.linalg.norm(result.samples.numpy(), axis=2, keepdims=True).std(0, ddof=1)
    assert np.allclose(result.standard_deviation.numpy(), expected, atol=1e-6)
    assert set(result.maps) == {"standard_deviation", "null_space"}


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_refused(tiny_prior: Path, samples: int) -> None:
    with pytest.raises(InputError, match=f"samples is {samples}; give a whole number from 1"):
        Reconstruction(str(tiny_prior), samples=samples)


@pytest.mark.parametrize("changes", [{"averaging": 0.1}, {"noise_above": 0}, {"eta": 1.0}])
def test_a_sampler_that_removes_the_noise_is_refused(tiny_prior: Path, changes: dict[str, Any]) -> None:
    sampler = replace(Sampler.posterior(), **changes)
    with pytest.raises(InputError, match=r"removes the noise .* add --config configs/sampler/posterior\.yaml"):
        Reconstruction(str(tiny_prior), sampler=sampler, samples=2)
    Reconstruction(str(tiny_prior), sampler=sampler)


@pytest.mark.parametrize("name", ["auto", "admm_tv", "fbp"])
def test_methods_without_samples_do_not_offer_them(name: str) -> None:
    with pytest.raises(InputError, match=r"no setting model\.samples"):
        load_method(name, samples=4)
