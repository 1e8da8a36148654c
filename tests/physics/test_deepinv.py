"""DeepInverse: its solvers reconstruct our measurements, and we reconstruct its."""

import pytest
import torch
from helpers import images, random
from torch import Tensor

from ddip_pl import reconstruct
from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, Birdcage, Measurement, ParallelBeamCT, RandomLines, simulate
from ddip_pl.physics.deepinv import from_deepinv, to_deepinv
from ddip_pl.prior.checkpoint import WEIGHTS
from ddip_pl.prior.deepinv import PriorDenoiser
from ddip_pl.prior.phantoms import RandomEllipses, phantoms

SHAPE = (2, 32, 32)


def some_phantoms() -> Tensor:
    drawn = RandomEllipses(2, 3, "uniform")
    return phantoms(torch.stack([torch.from_numpy(drawn[i]["ellipses"]) for i in range(2)]), 32)


@pytest.fixture(scope="module")
def ct() -> Measurement:
    operator, x = ParallelBeamCT(SHAPE, angles=40), some_phantoms()
    return Measurement(simulate(x, operator, 1e-3, torch.Generator().manual_seed(0)), operator, 1e-3, x)


@pytest.mark.parametrize("kind", ["ct", "coils"])
def test_adjoint_pseudo_inverse_and_noise(ct: Measurement, kind: str) -> None:
    pytest.importorskip("deepinv")
    operator = ct.operator if kind == "ct" else SENSE(SHAPE, RandomLines(2), Birdcage(3))
    physics, y = to_deepinv(Measurement(operator(random(*operator.domain)), operator, 0.25))
    x = random(*operator.domain, seed=1)
    assert torch.equal(physics.A(x), operator(x))
    assert torch.equal(physics.A_dagger(y), operator.pseudo_inverse(y))
    left, right = torch.vdot(physics.A(x).flatten(), y.flatten()).real, (x * physics.A_adjoint(y)).sum()
    assert left == pytest.approx(float(right), rel=1e-4)
    assert float(physics.noise_model.sigma) == 0.25
    back = from_deepinv(physics, y)
    assert back.sigma_y == pytest.approx(0.25 / back.operator.scale, rel=1e-3)
    assert torch.allclose(back.operator(x) * back.operator.scale, operator(x), atol=1e-5)


def test_a_solver_of_deepinv_reconstructs_our_measurement(ct: Measurement) -> None:
    dinv = pytest.importorskip("deepinv")
    physics, y = to_deepinv(ct)
    assert ct.reference is not None
    x = physics.prox_l2(torch.zeros_like(ct.reference), y, gamma=100.0)
    expected = ct.operator.solve(ct.operator.adjoint(y), 100, damping=1e-2)
    assert torch.allclose(x, expected, atol=5e-3)
    pnp = dinv.optim.optim_builder(
        iteration="HQS", prior=dinv.optim.prior.PnP(denoiser=PriorDenoiser(WEIGHTS / "ellipses_128.safetensors")),
        data_fidelity=dinv.optim.data_fidelity.L2(), max_iter=6, params_algo={"stepsize": 300.0, "g_param": 0.02},
    )  # fmt: skip
    denoised = pnp(y, physics)
    fbp = ct.operator.pseudo_inverse(y)
    assert (denoised - ct.reference).norm() < 0.8 * (fbp - ct.reference).norm()


def test_we_reconstruct_a_measurement_of_deepinv() -> None:
    dinv = pytest.importorskip("deepinv")
    x = some_phantoms()
    mask = (random(1, 32, 32) > -0.5).float()
    physics = dinv.physics.Inpainting((1, 32, 32), mask=mask, noise_model=dinv.physics.GaussianNoise(0.01))
    measurement = from_deepinv(physics, physics(x))
    assert measurement.sigma_y == pytest.approx(0.01, rel=0.02)
    assert measurement.operator.check().adjointness < 1e-4
    result = reconstruct(measurement.y, measurement.operator, measurement.sigma_y, method="admm_tv", progress=False)
    assert (result.tensor - x).norm() < 0.7 * (physics.A_adjoint(measurement.y) - x).norm()


def test_prior_is_a_denoiser_of_images() -> None:
    denoiser, x = PriorDenoiser(WEIGHTS / "ellipses_128.safetensors"), some_phantoms()
    for sigma, left in ((0.05, 0.8), (0.2, 0.6)):
        noisy = x + sigma * random(*x.shape)
        assert (denoiser(noisy, sigma) - x).norm() < left * (noisy - x).norm()
        both = denoiser(noisy, torch.tensor([sigma, sigma]))
        assert torch.allclose(both, denoiser(noisy, sigma), atol=1e-5)
    mixed = denoiser(noisy, torch.tensor([0.2, 0.02]).view(2, 1, 1, 1))
    assert torch.allclose(mixed[:1], denoiser(noisy[:1], 0.2), atol=1e-4)
    assert torch.allclose(mixed[1:], denoiser(noisy[1:], 0.02), atol=1e-4)


def test_physics_that_cannot_be_used() -> None:
    class Nonlinear:
        noise_model = None

    with pytest.raises(InputError, match="no Gaussian noise model; give sigma_y"):
        from_deepinv(Nonlinear(), images(2))
    with pytest.raises(InputError, match="Nonlinear has no adjoint"):
        from_deepinv(Nonlinear(), images(2), 0.1)
