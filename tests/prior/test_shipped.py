"""The shipped prior is small and has learned."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from safetensors import safe_open
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from ddip_pl.data.ellipses import VALIDATION_SEED, EllipsesDataModule
from ddip_pl.estimators import DDS
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import Measurement, ParallelBeamCT, PoissonDisc, SingleCoilMRI, simulate
from ddip_pl.prior.checkpoint import WEIGHTS, load_prior
from ddip_pl.prior.module import VALIDATION_TIMESTEPS
from ddip_pl.prior.phantoms import RandomEllipses, phantoms
from ddip_pl.prior.schedule import diffuse, noise_schedule
from ddip_pl.reconstruction import Reconstruction, Sampler
from ddip_pl.reconstruction.module import SHIPPED_PRIORS


def held_out_phantoms(count: int) -> torch.Tensor:
    dataset = RandomEllipses(count, VALIDATION_SEED, "uniform")
    return phantoms(default_collate([dataset[i] for i in range(count)])["ellipses"], 128)


def card(path: str = SHIPPED_PRIORS[1]) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["card"])


PUBLISHED = str(WEIGHTS / "ellipses_128_published.safetensors")


@pytest.mark.parametrize("path", [SHIPPED_PRIORS[1], PUBLISHED])
def test_is_small_and_says_how_it_was_made(path: str) -> None:
    assert Path(path).stat().st_size <= 8e6
    network = load_prior(path)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 128, 128), torch.zeros(1))
    assert counter.get_total_flops() <= 5e9
    assert card(path)["steps"] > 0
    assert card(path)["images"] > 0
    assert set(card(path)["validation_loss"]) == {str(t) for t in VALIDATION_TIMESTEPS}


@pytest.mark.parametrize("path", [SHIPPED_PRIORS[1], PUBLISHED])
@pytest.mark.parametrize("t", [50, 200, 400])
def test_denoises_held_out_phantoms_as_its_card_says(path: str, t: int) -> None:
    """Unseen phantoms of the kind that the prior was trained on."""
    data = EllipsesDataModule(128, variant=card(path)["data"]["variant"], batch_size=16, validation_size=16)
    x = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        eps = load_prior(path)(diffuse(x, noise, noise_schedule()[t]), torch.full((16,), t))
    assert float((eps - noise).square().mean()) == pytest.approx(card(path)["validation_loss"][str(t)], rel=0.25)


def test_can_be_named() -> None:
    by_name, by_path = load_prior("ellipses_128_published"), load_prior(PUBLISHED)
    assert all(map(torch.equal, by_name.parameters(), by_path.parameters()))


def crops(height: int, width: int) -> torch.Tensor:
    """The middle of phantoms of twice the prior's size."""
    ellipses = default_collate([RandomEllipses(2, VALIDATION_SEED, "uniform")[i] for i in range(2)])["ellipses"]
    top, left = (256 - height) // 2, (256 - width) // 2
    return phantoms(ellipses, 256)[..., top : top + height, left : left + width]


@pytest.mark.parametrize("t", [20, 200])
@torch.no_grad()
def test_sizes_between_multiples_change_little_but_at_the_margin(t: int) -> None:
    """The same image with 10 rows and 12 columns that the network would otherwise pad itself."""
    x_t = diffuse(
        crops(240, 192), torch.randn(2, 1, 240, 192, generator=torch.Generator().manual_seed(0)), noise_schedule()[t]
    )
    network, time = load_prior(SHIPPED_PRIORS[1]), torch.full((2,), t)
    whole, cut = network(x_t, time), network(x_t[..., :230, :180], time)
    assert cut.shape == (2, 1, 230, 180)
    change = (cut - whole[..., :230, :180]).square().mean((0, 1))
    assert change[:200, :150].mean().sqrt() < 0.01  # of noise of standard deviation 1
    assert change.mean().sqrt() < 0.05


def test_predicts_noise_in_larger_images_better_as_a_whole_than_in_parts() -> None:
    x = crops(256, 256)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    network = load_prior(SHIPPED_PRIORS[1])
    x_t = diffuse(x, noise, noise_schedule()[100])
    with torch.no_grad():
        whole = network(x_t, torch.tensor([100, 100]))
        parts = [
            torch.cat([network(p, torch.tensor([100, 100])) for p in r.split(128, 3)], 3) for r in x_t.split(128, 2)
        ]
    errors = [float((eps - noise).square().mean()) for eps in (whole, torch.cat(parts, 2))]
    assert errors[0] < 0.97 * errors[1]


def test_reconstructs_images_of_another_size_and_shape() -> None:
    operator = SingleCoilMRI((1, 230, 180), PoissonDisc(acceleration=4))
    seed_everything(0, verbose=False)
    x = crops(230, 180)[:1]
    measurement = Measurement(simulate(x, operator, 0.01), operator, 0.01, x)
    sampler = replace(Sampler.published(), steps=8, start=150, spacing=3)
    result = Reconstruction(estimator=DDS(15), sampler=sampler).reconstruct(measurement)
    assert result.images.shape == x.shape
    guess = summary(operator.pseudo_inverse(measurement.y), x)["psnr"]
    assert summary(result.images, x)["psnr"] > guess + 3


def test_reconstructs_held_out_phantoms_far_better_than_fbp() -> None:
    operator = ParallelBeamCT((4, 128, 128), angles=60)
    seed_everything(0, verbose=False)
    x = held_out_phantoms(4)
    measurement = Measurement(simulate(x, operator, 2e-4), operator, 2e-4, x)
    sampler = replace(Sampler.published(), steps=40, start=150, spacing=3)
    result = Reconstruction(estimator=DDS(15, gamma="infinite"), sampler=sampler).reconstruct(measurement)
    fbp = summary(operator.pseudo_inverse(measurement.y), x)["psnr"]
    assert summary(result.images, x)["psnr"] > fbp + 10
