"""DPS against the gradient of the data misfit, by finite differences and by automatic differentiation."""

import pytest
import torch
from helpers import DenseOperator, Known, dense, images, make_network, measure, tweedies_mean
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddip_pl.errors import InputError
from ddip_pl.estimators import DPS
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.denoiser import Denoiser, Plane
from ddip_pl.prior.schedule import ddim_step


class Curved(nn.Module):
    """A nonlinear network that mixes the pixels of a slice; one of its weights can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (
            self.weight.view(-1, 1, 1, 1) * x + x.mean((2, 3), keepdim=True) * x.roll(1, 2) + t.view(-1, 1, 1, 1) / 1000
        ).sin()


def misfit(denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement) -> Tensor:
    """`|| y - A x0_hat(x_t) ||` of every slice."""
    return measurement.residual(denoiser(x_t, t)[0]).norm(dim=1)


@pytest.mark.parametrize("t", [0, 1, 300, 999])
def test_dps_steps_down_the_gradient_of_the_misfit(t: int) -> None:
    denoiser, x_t, measurement = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7))
    with torch.no_grad():
        estimate = DPS(0.7)(denoiser, x_t, t, measurement)
        x0_hat, eps = denoiser(x_t, t)
        numerical = torch.zeros_like(x_t)
        for pixel in range(16):
            h = torch.zeros(16, dtype=x_t.dtype)
            h[pixel] = 1e-5
            ahead, behind = (misfit(denoiser, x_t + s * h.view(1, 4, 4), t, measurement) for s in (1, -1))
            numerical.view(3, 16)[:, pixel] = (ahead - behind) / 2e-5
    abar = 1.0 if t == 0 else float(denoiser.abar[t - 1])
    assert torch.allclose(estimate.mean, x0_hat - 0.7 / abar**0.5 * numerical, rtol=1e-4, atol=1e-6)
    assert torch.equal(estimate.eps, eps)
    assert estimate.memory == {}


def test_dps_is_the_published_step_after_the_samplers() -> None:
    """`x_{t-1} = x'_{t-1} - step grad` (Algorithm 1), with the gradient from autograd."""
    denoiser, x_t, measurement, noise = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7)), images(3, 8)
    (gradient,) = torch.autograd.grad(misfit(denoiser, x := x_t.clone().requires_grad_(), 300, measurement).sum(), x)
    x0_hat, eps = denoiser(x_t, 300)
    published = ddim_step(x0_hat, eps, noise, denoiser.abar[299], 0.85) - 0.7 * gradient
    ours = DPS(0.7)(denoiser, x_t, 300, measurement)
    assert torch.allclose(ddim_step(ours.mean, ours.eps, noise, denoiser.abar[299], 0.85), published, atol=1e-7)


@pytest.mark.parametrize("plane", ["slices", "rows", "columns"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_dps_does_not_depend_on_the_batches(batch_size: int, plane: Plane) -> None:
    sizes: list[int] = []

    class Spy(Curved):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x, t)

    x_t, measurement = images(5), measure(dense(6), images(5, 7))
    x_t[1] *= 10
    means = []
    for size in (batch_size, 100):
        denoiser = Denoiser(Spy(), size).across(plane)
        means.append(DPS()(denoiser, x_t, 300, measurement).mean)
        assert max(sizes) == min(size, 5 if plane == "slices" else 4)
        sizes.clear()
    assert torch.allclose(means[0], means[1], atol=1e-12)


def test_dps_treats_every_slice_by_itself() -> None:
    denoiser, x_t, measurement = Denoiser(Curved()), images(3), measure(dense(6), images(3, 7))
    together = DPS()(denoiser, x_t, 300, measurement).mean
    apart = torch.cat([DPS()(denoiser, x_t[i : i + 1], 300, measurement[i : i + 1]).mean for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-12)


def test_dps_takes_weights_of_each_slice() -> None:
    x_t, measurement = images(3), measure(dense(6), images(3, 7))
    weights = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    denoiser = Denoiser(Curved(), batch_size=2).with_weights({"weight": weights}, slicewise=True)
    together, apart = DPS()(denoiser, x_t, 300, measurement).mean, []
    for i in range(3):
        alone = Denoiser(Curved()).with_weights({"weight": weights[i]})
        apart.append(DPS()(alone, x_t[i : i + 1], 300, measurement[i : i + 1]).mean)
    assert torch.allclose(together, torch.cat(apart), atol=1e-12)


def test_dps_leaves_alone_what_fits_exactly() -> None:
    denoiser, x_t, operator = Denoiser(Curved()), images(3), dense(24)
    x0_hat, _ = denoiser(x_t, 300)
    truth = x0_hat.detach().clone()
    truth[1] += images(1, 9)[0]  # two of three slices fit
    mean = DPS()(denoiser, x_t, 300, measure(operator, truth)).mean
    assert torch.equal(mean[[0, 2]], x0_hat[[0, 2]])
    assert (mean[1] - x0_hat[1]).norm() > 0.1


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), level=st.floats(-5, 5), size=st.integers(1, 3))
def test_one_step_of_dps_with_the_right_length_solves_complete_data(seed: int, level: float, size: int) -> None:
    """`x0_hat = c x_t` and `A` a rotation: the gradient has length `c` and points from the solution to `x0_hat`."""
    rotation = DenseOperator(torch.linalg.qr(dense(16, seed).matrix)[0])
    denoiser, x_t, truth = Denoiser(Known(), size), level + images(1, seed), images(1, seed + 1)
    x0_hat = tweedies_mean(denoiser, x_t)
    c = float(tweedies_mean(denoiser, torch.ones(())))
    length = float((x0_hat - truth).norm()) * float(denoiser.abar[299].sqrt()) / c
    assert torch.allclose(DPS(length)(denoiser, x_t, 300, measure(rotation, truth)).mean, truth, atol=1e-5)


def test_adaptation_differentiates_dps() -> None:
    """The gradient of a loss with respect to the weights, through the network's own gradient."""
    network = Curved()
    x_t, measurement = images(3), measure(dense(6), images(3, 7))

    def loss(weight: Tensor) -> Tensor:
        denoiser = Denoiser(network, batch_size=2).with_weights({"weight": weight})
        return measurement.residual(DPS()(denoiser, x_t, 300, measurement).mean).square().sum()

    assert torch.autograd.gradcheck(loss, network.weight)
    with torch.no_grad():
        assert not loss(network.weight).requires_grad


def test_dps_goes_through_the_unet_as_autograd_does() -> None:
    denoiser = Denoiser(make_network(num_channels=32), batch_size=2).requires_grad_(False)
    operator = ParallelBeamCT((3, 32, 32), angles=8)
    x_t, truth = (torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    measurement = measure(operator, truth)
    with torch.no_grad():
        estimate = DPS(5.0)(denoiser, x_t, 300, measurement)
    x = x_t.clone().requires_grad_()
    x0_hat = denoiser(x, 300)[0]
    (gradient,) = torch.autograd.grad(measurement.residual(x0_hat).flatten(1).norm(dim=1).sum(), x)
    expected = x0_hat.detach() - 5 / denoiser.abar[299].sqrt() * gradient
    assert (expected - x0_hat).norm() > 0.1
    assert torch.allclose(estimate.mean, expected, atol=1e-4)
    assert not estimate.mean.requires_grad


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_bad_steps_of_dps_are_refused(step: float) -> None:
    with pytest.raises(InputError, match=rf"^DPS: step is {step}; give"):
        DPS(step)
