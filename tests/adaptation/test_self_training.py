"""Self-training (D3IP-EM): what it trains on, that the prior denoises the volume better afterwards."""

from dataclasses import replace

import pytest
import torch
from einops import repeat
from helpers import make_network
from torch import Tensor

from ddip_pl.adaptation import SelfTraining
from ddip_pl.adaptation.self_training import turned, turned_back
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import ConeBeamCT, LinearOperator, Measurement, ParallelBeamCT
from ddip_pl.physics.held_out import Masked, part, split
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.schedule import diffuse
from ddip_pl.reconstruction import ReverseDiffusion, Sampler

SIZE = 16


def begin(adaptation: SelfTraining, slices: int = SIZE) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(make_network()).requires_grad_(False)
    operator = ParallelBeamCT((slices, SIZE, SIZE), angles=8)
    adaptation.start(denoiser, Measurement(torch.zeros(operator.range), operator, 1e-3))
    return denoiser


def measure(operator: LinearOperator) -> Measurement:
    """Of a volume of random blocks."""
    blocks = torch.rand(operator.domain[0] // 2, 1, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(1))
    x = repeat(blocks, "s c h w -> (s a) c (h b) (w d)", a=2, b=4, d=4)
    return Measurement(operator(x), operator, 1e-3, x)


def reconstruct(measurement: Measurement, adaptation: SelfTraining) -> list[Tensor]:
    """The result of each trajectory."""
    torch.manual_seed(0)
    denoiser, sampler = Denoiser(make_network()).requires_grad_(False), Sampler(steps=3)
    diffusion = ReverseDiffusion(measurement, denoiser, DDS(5, gamma="infinite"), adaptation, sampler)
    return [step.images["estimate"] for step in diffusion.iterate()][sampler.steps - 1 :: sampler.steps]


def coordinates(slices: int) -> Tensor:
    """A volume whose voxels are numbered: 10000 slice + 100 row + column."""
    s, r, c = torch.meshgrid(torch.arange(slices), torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (10000 * s + 100 * r + c)[:, None].float()


def axes_of(crop: Tensor) -> frozenset[int]:
    """The two axes along which a crop of the numbered volume runs: 10000, 100 or 1."""
    steps = [crop[0, 1:] - crop[0, :-1], crop[0, :, 1:] - crop[0, :, :-1]]
    assert all(step.abs().unique().numel() == 1 for step in steps)  # no jumps
    return frozenset(int(step.abs()[0, 0]) for step in steps)


def test_crops_come_from_all_three_planes_in_all_orientations() -> None:
    adaptation = SelfTraining(batch=200, crop=8, phantoms=0)
    begin(adaptation)
    crops = adaptation.images(coordinates(SIZE))
    assert crops.shape == (200, 1, 8, 8)
    assert {axes_of(crop) for crop in crops} == {frozenset(pair) for pair in ((100, 1), (10000, 1), (10000, 100))}
    turns = {tuple((crop[0, :2, :2] - crop[0, 0, 0]).flatten().tolist()) for crop in crops}
    assert len(turns) == 3 * 8


def test_thin_volumes_and_small_slices_give_what_they_have() -> None:
    adaptation = SelfTraining(batch=50, crop=64, phantoms=0)
    begin(adaptation, 4)
    crops = adaptation.images(coordinates(4))
    assert crops.shape == (50, 1, SIZE, SIZE)
    assert {axes_of(crop) for crop in crops} == {frozenset((100, 1))}


@pytest.mark.parametrize("channels", [1, 2])
def test_a_share_of_the_batch_is_phantoms(channels: int) -> None:
    adaptation = SelfTraining(batch=8, crop=8, phantoms=0.25)
    begin(adaptation)
    images = adaptation.images(torch.full((4, channels, SIZE, SIZE), -7.0))
    assert images.shape == (8, channels, 8, 8)
    assert (images[:6] == -7).all()
    assert (images[6:].abs() <= 1).all()
    assert not torch.equal(images[6:], adaptation.images(torch.zeros(4, channels, SIZE, SIZE))[6:])


def test_a_batch_always_has_a_crop_of_the_volume() -> None:
    adaptation = SelfTraining(batch=1, crop=8, phantoms=0.9)
    begin(adaptation)
    assert (adaptation.images(torch.full((4, 1, SIZE, SIZE), -7.0)) == -7).all()


def test_the_prior_learns_to_denoise_the_first_result_and_is_restored() -> None:
    adaptation = SelfTraining(steps=60, learning_rate=3e-3, batch=4)
    denoiser = begin(adaptation)
    volume = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).repeat(4, 1, 1, 1)
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(2))
    x_t = diffuse(volume, noise, denoiser.abar[100])
    before = denoiser(x_t, 100)[1]

    first = adaptation.adapt(DDS(), x_t, 100)
    assert not first.figures
    assert torch.equal(first.denoiser(x_t, 100)[1], before)

    adaptation.next_trajectory(volume)
    gradient_steps: list[tuple[int, int]] = []
    adapted = adaptation.adapt(DDS(), x_t, 100, lambda done, steps: gradient_steps.append((done, steps)))
    assert gradient_steps == [(i + 1, 60) for i in range(60)]
    assert adapted.figures["loss_after"] < adapted.figures["loss_before"]
    after = adapted.denoiser(x_t, 100)[1]
    assert (after - noise).square().mean() < 0.9 * (before - noise).square().mean()
    assert not adaptation.adapt(DDS(), x_t, 50).figures  # once is enough

    weights = adaptation.finish()
    assert torch.equal(denoiser(x_t, 100)[1], before)
    assert torch.equal(denoiser.with_weights(weights.tensors)(x_t, 100)[1], after)


def test_the_first_trajectory_has_not_seen_the_hidden_data() -> None:
    measurement = measure(ParallelBeamCT((8, SIZE, SIZE), angles=10))
    adaptation = SelfTraining(steps=2, batch=2)
    first, second = reconstruct(measurement, adaptation)
    assert adaptation.hidden is not None
    changed = replace(measurement, y=measurement.y + adaptation.hidden.operator.sampled(torch.ones_like(measurement.y)))
    other_first, other_second = reconstruct(changed, SelfTraining(steps=2, batch=2))
    assert torch.equal(first, other_first)
    assert not torch.equal(second, other_second)
    assert measurement.misfit(second).sum() < measurement.misfit(first).sum()


@pytest.mark.parametrize("make", [ParallelBeamCT, ConeBeamCT])
def test_the_prior_learns_to_predict_the_hidden_data(
    make: type[ParallelBeamCT] | type[ConeBeamCT], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SelfTraining, "denoising_loss", lambda *_: torch.zeros(()))  # only the other loss
    measurement = measure(make((8, SIZE, SIZE), 10))
    torch.manual_seed(0)
    denoiser = Denoiser(make_network()).requires_grad_(False)
    adaptation = SelfTraining(steps=60, learning_rate=3e-3, batch=1)
    adaptation.start(denoiser, measurement)
    volume = adaptation.kept.operator.pseudo_inverse(adaptation.kept.y)
    x_t = diffuse(volume, torch.randn(volume.shape), denoiser.abar[50])
    adaptation.next_trajectory(volume)
    adapted = adaptation.adapt(DDS(), x_t, 100).denoiser
    assert adaptation.hidden is not None
    before, after = (adaptation.hidden.misfit(prior(x_t, 50)[0]).sum() for prior in (denoiser, adapted))
    assert after < 0.9 * before


@pytest.mark.parametrize(("factor", "share"), [(0.5, 0.0), (1.0, 0.0), (4.0, 1 - 1 / 16)])
def test_hidden_data_count_as_far_as_they_are_more_than_noise(factor: float, share: float) -> None:
    """The factor is the root mean square of the error on the hidden data, in units of the noise."""
    exact = measure(ParallelBeamCT((8, SIZE, SIZE), angles=10))
    assert exact.reference is not None
    error = factor * exact.sigma_y * torch.ones_like(exact.y)
    _, hidden = split(replace(exact, y=exact.y + error), 0.2)
    assert SelfTraining().signal(exact.reference, hidden) == pytest.approx(share, abs=1e-3)


def test_a_slice_without_hidden_data_does_not_matter() -> None:
    measurement = measure(ParallelBeamCT((8, SIZE, SIZE), angles=10))
    adaptation = SelfTraining(steps=2, batch=1, slices=8)
    denoiser = Denoiser(make_network()).requires_grad_(False)
    adaptation.start(denoiser, measurement)
    mask = torch.ones(measurement.operator.range, dtype=torch.bool)
    mask[0] = False
    adaptation.hidden = part(measurement, Masked(measurement.operator, mask))
    assert adaptation.train(torch.zeros(measurement.operator.domain), 1e-4).isfinite().all()
    assert all(weight.isfinite().all() for weight in adaptation.weights.values())


@pytest.mark.parametrize("flipped", [0, 1])
@pytest.mark.parametrize("quarters", range(4))
def test_turned_back(flipped: int, quarters: int) -> None:
    images = torch.rand(2, 1, 3, 4)
    assert torch.equal(turned_back(turned(images, flipped, quarters), flipped, quarters), images)


def test_a_single_view_cannot_be_split() -> None:
    with pytest.raises(InputError, match="1 readout cannot be split"):
        SelfTraining().start(Denoiser(make_network()), measure(ParallelBeamCT((8, SIZE, SIZE), angles=1)))


def test_thin_volumes_hide_nothing() -> None:
    measurement = measure(ParallelBeamCT((6, SIZE, SIZE), angles=1))
    adaptation = SelfTraining(steps=2, batch=2)
    first, second = reconstruct(measurement, adaptation)
    assert adaptation.data(measurement, 0) is measurement
    assert not torch.equal(first, second)
