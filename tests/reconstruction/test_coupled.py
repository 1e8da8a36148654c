"""Slices that are measured together: estimators act on the volume, adaptation on some slices of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network, quiet_trainer
from lightning import seed_everything
from torch import Tensor

from ddip_pl.adaptation import LoraTraining, MetaAdaptation, SlicewiseAdaptation, VolumeAdaptation
from ddip_pl.baselines import DeepImagePrior, L1Wavelet, TotalVariation
from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS, DPS, DiffusionMBIR
from ddip_pl.physics import ConeBeamCT, LinearOperator, Measurement, ParallelBeamCT, simulate
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.reconstruction import Reconstruction, Sampler
from ddip_pl.solvers.cg import conjugate_gradient

SHAPE = SLICES, SIZE, _ = 4, 16, 16


class Together(LinearOperator):
    """Parallel beams whose sinograms form one measurement of the volume."""

    coupled = SLICES

    def __init__(self) -> None:
        super().__init__(SHAPE)
        self.each = ParallelBeamCT(SHAPE, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x)[None]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.each.adjoint(y[0])

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.each.pseudo_inverse(y[0])


def images(seed: int = 0, slices: int = SLICES) -> Tensor:
    return torch.rand(slices, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def measure(operator: LinearOperator, sigma_y: float = 1e-2) -> Measurement:
    x = images()
    y = simulate(x, operator, sigma_y, torch.Generator().manual_seed(1))
    return Measurement(y, operator, sigma_y, x)


def published(**changes: Any) -> LoraTraining:
    """The paper's settings, except for these."""
    return replace(LoraTraining.published(), **changes)


@pytest.fixture(scope="module")
def cone() -> ConeBeamCT:
    return ConeBeamCT(SHAPE, 9)


# --- estimators -----------------------------------------------------------------------------------------------


def test_conjugate_gradients_solve_coupled_slices_as_one_system() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    matrix = matrix @ matrix.T + torch.eye(12)
    b = torch.randn(6, 4, dtype=torch.float64, generator=generator)  # two systems of three slices

    def normal(v: Tensor) -> Tensor:
        return (v.reshape(2, 12) @ matrix).view(6, 4)

    expected = torch.linalg.solve(matrix, b.view(2, 12).T).T.reshape(6, 4)
    assert torch.allclose(conjugate_gradient(normal, b, 14, coupled=3), expected, rtol=1e-6)


def test_what_acts_on_the_volume_does_not_care_who_is_measured_with_whom() -> None:
    apart, together = measure(ParallelBeamCT(SHAPE, 9)), measure(Together())
    assert torch.equal(apart.y, together.y[0])
    assert len(apart) == len(together) == SLICES
    torch.testing.assert_close(apart.noise_energy().sum(), together.noise_energy().sum())
    for estimator in DiffusionMBIR(0.1, 10.0), DiffusionMBIR(0.1, 10.0, discrepancy=1.0, iterations=20):
        means = [estimator.condition(images(7), m, {}, 0.1)[0] for m in (apart, together)]
        assert torch.allclose(*means, atol=1e-6)
    assert torch.allclose(*(tv_reconstruction(m, 1e-3, most=5) for m in (apart, together)), atol=1e-6)
    assert apart.discrepancy(images(7)) == pytest.approx(together.discrepancy(images(7)))


def test_dds_solves_its_normal_equations_for_the_volume(cone: ConeBeamCT) -> None:
    measurement = measure(cone)
    proximal, _ = DDS(60, gamma=5.0).condition(images(7), measurement, {}, 0.1)
    right = images(7) + 5 * cone.adjoint(measurement.y)
    assert torch.allclose(proximal + 5 * cone.normal(proximal), right, atol=1e-4)


def test_dps_goes_as_far_as_with_every_slice_by_itself(cone: ConeBeamCT) -> None:
    measurement, x = measure(cone), images(7).requires_grad_()
    direction = DPS().direction(x, measurement)
    (expected,) = torch.autograd.grad(measurement.residual(x).norm(), x)
    assert torch.allclose(direction, SLICES**0.5 * expected, rtol=1e-4, atol=1e-6)
    apart, together = measure(ParallelBeamCT(SHAPE, 9)), measure(Together())
    lengths = [float(DPS().direction(images(7), m).norm()) for m in (apart, together)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.05)


# --- some of the slices ---------------------------------------------------------------------------------------


class Spy(VolumeAdaptation):
    """Records the drawn slices, and the parts of the measurement used in the loss."""

    def draw_slices(self) -> Tensor:
        self.chosen = [*getattr(self, "chosen", []), super().draw_slices()]
        return self.chosen[-1]

    def losses(self, estimator: Any, denoiser: Any, x_t: Tensor, t: int, part: Measurement) -> tuple[Tensor, Tensor]:
        self.parts = [*getattr(self, "parts", []), part]
        return super().losses(estimator, denoiser, x_t, t, part)


def test_adaptation_of_the_volume_sees_some_slices_and_lowers_the_loss(cone: ConeBeamCT) -> None:
    torch.manual_seed(0)
    measurement = measure(cone, 1e-5)
    denoiser = Denoiser(make_network(image_size=SIZE, attention_resolutions=())).requires_grad_(False)
    adaptation = Spy(2, training=published(steps=12, horizon=0))
    adaptation.start(denoiser, measurement)
    x_t, estimator = images(5), DDS(2, gamma="infinite")
    before = estimator(adaptation.adapted, x_t, 100, measurement).mean
    first = measurement.residual(before).norm()
    adapted, _ = adaptation.adapt(estimator, x_t, 100)
    assert len(adaptation.chosen) == 12
    assert len(adaptation.parts) == 13  # the loss of the last weights too
    for chosen, part in zip(adaptation.chosen, adaptation.parts[:12], strict=True):
        assert len(chosen) == len(part) == 2
        assert torch.equal(part.y, measurement.given(lambda: before)[chosen].y)
    assert len({tuple(chosen.tolist()) for chosen in adaptation.chosen}) > 3
    after = estimator(adapted, x_t, 100, measurement).mean
    assert measurement.residual(after).norm() < 0.9 * first
    adaptation.adapt(estimator, x_t, 90)  # with another estimate
    held = measurement.given(lambda: before)[adaptation.chosen[-1]]
    assert not torch.allclose(adaptation.parts[-1].y, held.y, atol=1e-4)


# --- whole runs -----------------------------------------------------------------------------------------------


def run(module: Any, path: Path) -> Any:
    seed_everything(0, verbose=False)
    data = VolumeDataModule(str(path), partial(ConeBeamCT, angles=8, iterations=3), 1e-3, slices=4, size=32)
    (result,) = quiet_trainer().predict(module, data)  # type: ignore[misc]
    return result


TWO = replace(Sampler.published(), steps=2, start=150)

METHODS = {
    "dds": lambda prior: Reconstruction(prior, DDS(3), sampler=TWO),
    "ddnm": lambda prior: Reconstruction(prior, DDNM(3), sampler=TWO),
    "dps": lambda prior: Reconstruction(prior, DPS(), sampler=TWO),
    "diffusion_mbir": lambda prior: Reconstruction(prior, DiffusionMBIR(0.1, 10.0, iterations=2), sampler=TWO),
    "d3ip": lambda prior: Reconstruction(prior, DDS(2), VolumeAdaptation(2, training=published(steps=2)), TWO),
    "d3ip_mbir": lambda prior: Reconstruction(
        prior, DiffusionMBIR(0.1, 10.0, iterations=1), VolumeAdaptation(3, True, training=published(steps=1)), TWO
    ),
    "admm_tv": lambda prior: TotalVariation(iterations=3),
    "l1_wavelet": lambda prior: L1Wavelet(iterations=3),
    "dip": lambda prior: DeepImagePrior(iterations=2, batch_size=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_volume_runs(name: str, tiny_prior: Path, phantom_volume: Path) -> None:
    result = run(METHODS[name](str(tiny_prior)), phantom_volume)
    assert result.images.shape == (4, 1, 32, 32)
    assert result.images.isfinite().all()
    assert result.trajectory[-1]["residual"] < 1
    assert (result.weights.count > 0) == name.startswith("d3ip")


@pytest.mark.parametrize("adaptation", [SlicewiseAdaptation, MetaAdaptation])
def test_weights_for_every_slice_are_refused(adaptation: Any, tiny_prior: Path, phantom_volume: Path) -> None:
    module = Reconstruction(str(tiny_prior), DDS(2), adaptation(), TWO)
    with pytest.raises(InputError, match=r"ConeBeamCT measures slices together.*choose d3ip") as caught:
        run(module, phantom_volume)
    assert "\n" not in str(caught.value)
