"""The prior that comes with the package: small enough, and it has learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from safetensors import safe_open
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from ddip_pl.data.ellipses import VALIDATION_SEED, EllipsesDataModule, RandomEllipses, phantoms
from ddip_pl.estimators import DDS
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import Measurement, ParallelBeamCT, simulate
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.module import VALIDATION_TIMESTEPS
from ddip_pl.prior.schedule import diffuse, noise_schedule
from ddip_pl.reconstruction import Reconstruction, ReconstructionTrainer
from ddip_pl.reconstruction.module import SHIPPED_PRIORS


def held_out_phantoms(count: int) -> torch.Tensor:
    dataset = RandomEllipses(count, VALIDATION_SEED, "uniform")
    return phantoms(default_collate([dataset[i] for i in range(count)])["ellipses"], 128)


def card() -> dict[str, Any]:
    with safe_open(SHIPPED_PRIORS[1], "pt") as file:
        return json.loads(file.metadata()["card"])


def test_is_small_and_says_how_it_was_made() -> None:
    assert Path(SHIPPED_PRIORS[1]).stat().st_size <= 8e6
    network = load_prior(SHIPPED_PRIORS[1])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 128, 128), torch.zeros(1))
    assert counter.get_total_flops() <= 5e9
    assert card()["steps"] > 0
    assert card()["images"] > 0
    assert set(card()["validation_loss"]) == {str(t) for t in VALIDATION_TIMESTEPS}


@pytest.mark.parametrize("t", [50, 200, 400])
def test_denoises_held_out_phantoms_as_its_card_says(t: int) -> None:
    """Phantoms of the kind that it was trained on and has never seen."""
    data = EllipsesDataModule(128, variant=card()["data"]["variant"], batch_size=16, validation_size=16)
    x = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        eps = load_prior(SHIPPED_PRIORS[1])(diffuse(x, noise, noise_schedule()[t]), torch.full((16,), t))
    assert float((eps - noise).square().mean()) == pytest.approx(card()["validation_loss"][str(t)], rel=0.25)


def test_reconstructs_held_out_phantoms_far_better_than_fbp() -> None:
    operator = ParallelBeamCT(128, angles=60)
    seed_everything(0, verbose=False)
    x = held_out_phantoms(4)
    measurement = Measurement(simulate(x, operator, 2e-4), operator, 2e-4, "phantoms", reference=x)
    trainer = ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (result,) = trainer.predict(
        Reconstruction(estimator=DDS(15), steps=40, start=150, spacing=3), DataLoader([measurement], batch_size=None)
    )  # type: ignore[arg-type, misc]
    fbp = summary(operator.pseudo_inverse(measurement.y), x)["psnr"]
    assert summary(result.images, x)["psnr"] > fbp + 10
