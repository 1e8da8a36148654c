"""The examples of docs/extending.md keep what it promises, from Python and on the command line."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bias_adaptation import BiasAdaptation
from helpers import ROOT, make_network, save_phantoms
from landweber import Landweber
from safetensors.torch import load_file
from super_resolution import SuperResolution
from torch import Tensor

from ddip_pl import cli
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.reconstruction import Reconstruction, Sampler
from ddip_pl.results.result import Result

SHAPE = SLICES, SIZE, _ = 4, 16, 16


def images(slices: int = SLICES, seed: int = 0) -> Tensor:
    return torch.rand(slices, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def measure(operator: Any) -> Measurement:
    return Measurement(operator(images()), operator, 0.0)


def reconstruct(volume: Path, operator: Any, sigma_y: float, method: Reconstruction) -> Result:
    torch.manual_seed(0)
    return method.reconstruct(*VolumeDataModule(str(volume), operator, sigma_y, window=(-1000, 1000)).simulate(64))


@pytest.fixture(scope="module")
def small_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_phantoms(tmp_path_factory.mktemp("volume") / "phantom.nii.gz", 3)


# --- operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_operator_has_its_adjoint_unit_norm_and_pseudo_inverse(factor: int) -> None:
    operator = SuperResolution(SHAPE, factor)
    x = images().double().requires_grad_()
    y = torch.randn(operator(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert y.shape == (4, 1, SIZE // factor, SIZE // factor)
    (transpose,) = torch.autograd.grad(operator(x), x, y)  # by automatic differentiation
    assert torch.allclose(operator.adjoint(y), transpose)
    assert torch.allclose(operator(operator.pseudo_inverse(y)), y)
    assert operator.check().norm == 1
    ones = torch.ones_like(x)
    assert torch.allclose(operator.normal(ones), ones)  # an eigenvector of the largest eigenvalue
    assert torch.allclose(operator.scale * operator(ones), torch.ones_like(y))


def test_operator_refuses_squares_that_do_not_fill_the_image() -> None:
    with pytest.raises(InputError, match="factor 3 does not divide 16 x 16 pixels"):
        SuperResolution(SHAPE, 3)


# --- estimator ------------------------------------------------------------------------------------------------


def test_landweber_comes_closer_to_the_data_with_every_step() -> None:
    measurement = measure(ParallelBeamCT(SHAPE, angles=6))
    start = torch.full((4, 1, SIZE, SIZE), 0.5)
    residuals = [
        float(measurement.residual(Landweber(n, 1.9).condition(start, measurement, {}, 0.1)[0]).norm())
        for n in (1, 2, 8, 64)
    ]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < 0.05 * float(measurement.residual(start).norm())


@pytest.mark.parametrize(("iterations", "step"), [(1, 1.0), (7, 1.0), (7, 1.9)])
def test_landweber_filters_the_singular_values(iterations: int, step: float) -> None:
    """In the basis of singular vectors, `n` steps remove a fraction `1 - (1 - step s^2)^n` of the error."""
    operator = ParallelBeamCT((SLICES, 8, 8), angles=3).double()
    pixels = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    _, s, v = torch.linalg.svd(operator(pixels).flatten(1).T, full_matrices=False)
    truth, start = images()[..., :8, :8].double(), images(seed=1)[..., :8, :8].double()
    measurement = Measurement(operator(truth), operator, 0.0)
    part = 1 - (1 - step * s**2) ** iterations
    expected = start.flatten(1) + (truth - start).flatten(1) @ v.T * part @ v
    found, _ = Landweber(iterations, step).condition(start, measurement, {}, 0.1)
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)


def test_one_step_of_landweber_is_ddnm_where_rows_are_orthonormal() -> None:
    measurement = measure(SuperResolution(SHAPE))
    start = images(seed=1)
    found, _ = Landweber(1).condition(start, measurement, {}, 0.1)
    assert torch.allclose(found, DDNM().condition(start, measurement, {}, 0.1)[0], atol=1e-5)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"step": 2.0}, {"step": 0.0}])
def test_landweber_refuses_steps_that_do_not_converge(settings: Any) -> None:
    with pytest.raises(InputError, match=r"^Landweber: (iterations|step) is .*; give a"):
        Landweber(**settings)


def test_operator_and_estimator_beat_their_input(small_volume: Path) -> None:
    module = Reconstruction(
        estimator=Landweber(1), sampler=Sampler(20, 150, spacing=3.0, eta=1.0, planes="slices", averaging=0.0)
    )
    result = reconstruct(small_volume, partial(SuperResolution, factor=4), 0.0, module)
    measurement = result.measurement
    assert measurement.reference is not None
    before = summary(measurement.operator.pseudo_inverse(measurement.y), measurement.reference)
    after = summary(result.tensor, measurement.reference)
    assert after["psnr"] > before["psnr"] + 1.5
    assert after["ssim"] > before["ssim"] + 0.05
    assert float(measurement.residual(result.tensor).norm()) < 1e-3 * float(measurement.y.norm())


# --- adaptation -----------------------------------------------------------------------------------------------


def loss(denoiser: Denoiser, measurement: Measurement) -> float:
    with torch.no_grad():
        mean = DDS(2, gamma="infinite")(denoiser, images(seed=1), 100, measurement).mean
        return float(measurement.residual(mean).square().sum())


def test_biases_are_trained_and_the_prior_is_left_as_it_was_found() -> None:
    denoiser = Denoiser(make_network()).requires_grad_(False)
    original = {name: p.clone() for name, p in denoiser.network.named_parameters()}
    before = denoiser(images(), 100)[1]
    measurement = measure(ParallelBeamCT(SHAPE, angles=8))
    untrained = loss(denoiser, measurement)
    adaptation = BiasAdaptation(slices=4, learning_rate=1e-2)
    adaptation.start(denoiser, measurement)
    for _ in range(10):
        adapted, _ = adaptation.adapt(DDS(2, gamma="infinite"), images(seed=1), 100)
    assert loss(adapted, measurement) < 0.9 * untrained
    weights = adaptation.finish().tensors
    assert weights.keys() == {name for name in original if name.endswith("bias")}
    assert any(not torch.equal(value, original[name]) for name, value in weights.items())
    assert all(torch.equal(p, original[name]) for name, p in denoiser.network.named_parameters())
    assert torch.equal(denoiser(images(), 100)[1], before)


def test_adaptation_goes_on_from_its_state(tmp_path: Path) -> None:
    def begin() -> BiasAdaptation:
        adaptation = BiasAdaptation(slices=3, learning_rate=1e-2)
        adaptation.start(Denoiser(make_network()).requires_grad_(False), measure(ParallelBeamCT(SHAPE, angles=8)))
        return adaptation

    def step(adaptation: BiasAdaptation) -> Tensor:
        torch.manual_seed(1)  # draws the slices
        adaptation.adapt(DDS(2), images(seed=1), 100)
        return torch.cat(list(adaptation.biases.values())).detach().clone()

    first = begin()
    before = step(first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    whole = step(first)
    again = begin()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(step(again), whole)
    assert not torch.equal(whole, before)


def test_adaptation_refuses_more_slices_than_there_are() -> None:
    with pytest.raises(InputError, match="draws 5 slices, the volume has 4"):
        BiasAdaptation(5).start(Denoiser(make_network()), measure(SuperResolution(SHAPE)))


# --- command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["landweber", "bias_adaptation"])
def test_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_volume: Path, tiny_prior: Path, method: str
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["ddip-pl", "test", "--plugins", "super_resolution", method, "--config",
         f"{ROOT}/examples/super_resolution.yaml", "--config", f"{ROOT}/examples/{method}.yaml", "--data.path",
         str(small_volume), "--model.prior", str(tiny_prior), "--model.sampler.steps", "2", "--output", str(tmp_path)],
    )  # fmt: skip
    assert cli.main() == 0
    written = {path.name for path in (tmp_path / "phantom").iterdir()}
    assert {"reconstruction.nii.gz", "metrics.json", "config.yaml"} <= written
    assert ("weights.safetensors" in written) == (method == "bias_adaptation")
    if method == "bias_adaptation":
        network = dict(load_prior(str(tiny_prior)).named_parameters())
        stored = load_file(tmp_path / "phantom" / "weights.safetensors")
        assert stored.keys() == {name for name in network if name.endswith("bias")}
        assert any(not torch.equal(value, network[name]) for name, value in stored.items())
