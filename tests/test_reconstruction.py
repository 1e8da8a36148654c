"""The reverse diffusion loop: what it computes, how it adapts, that it can be killed and continued."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor

from ddip_pl.adaptation import Adaptation, NoAdaptation, VolumeAdaptation
from ddip_pl.data.volumes import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import ParallelBeamCT
from ddip_pl.prior.schedule import ddim_step, noise_schedule, slerp, tweedie
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import Reconstruction, Result


class Keep(ReconstructionCallback):
    """Keeps the results, and does something after a given step."""

    def __init__(self, at: int = 0, action: Any = None):
        self.at, self.action = at, action

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs

    def on_diffusion_step_end(self, trainer: Any, step: int, steps: int, row: dict[str, float]) -> None:
        if step == self.at:
            self.action(trainer)


def reconstruct(
    prior: Path, volume: Path, adaptation: Adaptation | None = None, keep: Keep | None = None,
    ckpt_path: Path | None = None, seed: int = 0, **settings: Any,
) -> Result:  # fmt: skip
    seed_everything(seed, verbose=False)
    module = Reconstruction(str(prior), adaptation=adaptation, **({"steps": 6, "batch_size": 4} | settings))
    data = VolumeDataModule(str(volume), partial(ParallelBeamCT, angles=12), sigma_y=2e-4, window=(-1000, 1000))
    keep = keep or Keep()
    trainer = ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[keep],
        enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, data, ckpt_path=ckpt_path)
    return keep.result


def d3ip(**settings: Any) -> VolumeAdaptation:
    return VolumeAdaptation(**({"slices": 2, "steps": 2} | settings))


def test_loop_is_the_papers_algorithm(tiny_prior: Path, phantom_volume: Path) -> None:
    """The same volume from a few straight lines, for all slices at once, without adaptation."""
    result = reconstruct(tiny_prior, phantom_volume, steps=5, start=980, batch_size=100)
    measurement = result.measurement
    network = Reconstruction(str(tiny_prior)).denoiser.network
    abar = torch.cat([noise_schedule(), torch.ones(1)])
    torch.manual_seed(0)
    guess = measurement.operator.pseudo_inverse(measurement.y)
    first, last = torch.randn(2, *guess.shape[1:])
    ts = [980, 735, 490, 245, 0, -1]
    x = abar[ts[0]].sqrt() * guess + (1 - abar[ts[0]]).sqrt() * slerp(first, last, len(guess))
    with torch.no_grad():
        for t, t_next in itertools.pairwise(ts):
            eps = network(x, torch.full((len(x),), t))
            mean = DDS(5).condition(tweedie(x, eps, abar[t]), measurement)
            x = ddim_step(mean, eps, torch.randn(x.shape), abar[t_next], 0.85)
    assert torch.allclose(result.images, x, atol=1e-5)


def test_same_seed_same_volume(tiny_prior: Path, phantom_volume: Path) -> None:
    first, second, other = (reconstruct(tiny_prior, phantom_volume, d3ip(), seed=seed).images for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-3)


def test_adaptation_reduces_its_loss_and_leaves_the_prior_as_it_was(tiny_prior: Path, phantom_volume: Path) -> None:
    adaptation = d3ip(slices=6, steps=8, learning_rate=5e-3)
    seed_everything(0, verbose=False)
    module = Reconstruction(str(tiny_prior), DDS(1))
    before = {name: value.clone() for name, value in module.denoiser.network.state_dict().items()}
    data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000))
    measurement = data.simulate(ParallelBeamCT(32, angles=12))
    adaptation.start(module.denoiser, measurement)
    x_t = torch.randn(measurement.reference.shape)  # type: ignore[union-attr]
    losses = [adaptation.adapt(DDS(1), x_t, 500) for _ in range(3)]
    assert losses[2] < 0.9 * losses[0]  # type: ignore[operator]
    weights = adaptation.finish()
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    after = module.denoiser.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_horizon_limits_adaptation(tiny_prior: Path, phantom_volume: Path) -> None:
    result = reconstruct(tiny_prior, phantom_volume, d3ip(steps=1, horizon=300), steps=11, start=1000 - 10)
    adapted = [row["t"] for row in result.trajectory if "loss" in row]
    assert adapted == [t for t in range(990, -1, -99) if 300 <= t <= 700]


def test_loss_uses_the_estimator_of_sampling(tiny_prior: Path, phantom_volume: Path) -> None:
    calls: list[tuple[int, bool]] = []

    class Spy(DDS):
        def __call__(self, denoiser: Any, x_t: Tensor, t: int, measurement: Any) -> tuple[Tensor, Tensor]:
            calls.append((len(x_t), torch.is_grad_enabled()))
            return super().__call__(denoiser, x_t, t, measurement)

    reconstruct(tiny_prior, phantom_volume, d3ip(), estimator=Spy(), steps=3, start=700)
    assert calls[:4] == [(2, True), (2, True), (4, False), (2, False)]


def test_trajectory_has_every_step_and_ends_near_the_data(tiny_prior: Path, phantom_volume: Path) -> None:
    result = reconstruct(tiny_prior, phantom_volume, estimator=DDS(20))
    assert [row["t"] for row in result.trajectory] == [980, 784, 588, 392, 196, 0]
    assert result.trajectory[-1]["residual"] < 0.5 * result.trajectory[0]["residual"]
    y = result.measurement.y
    residual = (result.measurement.operator(result.images) - y).norm() / y.norm()
    assert result.trajectory[-1]["residual"] == pytest.approx(float(residual), rel=1e-4)


@pytest.mark.parametrize("adapted", [False, True])
def test_saved_in_the_middle_and_continued_in_another_process(
    tiny_prior: Path, phantom_volume: Path, tmp_path: Path, adapted: bool
) -> None:
    """The first process dies without a word behind step 3; the second one's volume is that of an uninterrupted run."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_reconstruction import Keep, d3ip, reconstruct
def die(trainer):
    trainer.save_checkpoint({str(tmp_path / "last.ckpt")!r})
    os._exit(7)
reconstruct(Path({str(tiny_prior)!r}), Path({str(phantom_volume)!r}), d3ip() if {adapted} else None, Keep(3, die))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ.copy())
    assert run.returncode == 7, run.stderr
    adaptation = d3ip if adapted else NoAdaptation
    whole = reconstruct(tiny_prior, phantom_volume, adaptation())
    steps: list[int] = []
    keep = Keep(4, lambda trainer: steps.append(trainer.reverse_diffusion.step))
    continued = reconstruct(tiny_prior, phantom_volume, adaptation(), keep, tmp_path / "last.ckpt", seed=0)
    assert steps == [4]
    assert torch.equal(continued.images, whole.images)
    assert len(continued.trajectory) == len(whole.trajectory) == 6
    for name, value in whole.weights.items():
        assert torch.equal(continued.weights[name], value)


def test_lightning_still_has_what_the_loop_builds_on(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    """Lightning's loop classes are not part of its public interface; this fails first when a release changes them."""
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "last.ckpt"))
    reconstruct(tiny_prior, phantom_volume, keep=keep)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "loops" in saved, "Lightning no longer saves its loops in checkpoints"
    key = "reverse_diffusion.state_dict"
    assert key in saved["loops"]["test_loop"], "Lightning no longer saves the state of child loops"
    assert saved["loops"]["test_loop"][key]["step"] == 2
    assert saved["state_dict"] == {}, "the frozen prior does not belong into a checkpoint"


def test_checkpoint_of_another_run_is_refused(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "last.ckpt"))
    reconstruct(tiny_prior, phantom_volume, keep=keep)
    with pytest.raises(InputError, match="run with 6 slices and 6 steps from 980"):
        reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "last.ckpt", steps=5)


def test_memory_of_a_step_does_not_grow_with_slices(tiny_prior: Path, phantom_volume: Path) -> None:
    """No tensor but the volume-sized ones is larger for more slices: the network and the estimator see batches."""
    sizes: list[int] = []

    class Spy(DDS):
        def condition(self, x0_hat: Tensor, measurement: Any) -> Tensor:
            sizes.append(len(x0_hat))
            return super().condition(x0_hat, measurement)

    reconstruct(tiny_prior, phantom_volume, d3ip(), estimator=Spy(), batch_size=2, steps=3)
    assert max(sizes) == 2


def test_more_slices_for_a_gradient_step_than_there_are(tiny_prior: Path, phantom_volume: Path) -> None:
    with pytest.raises(InputError, match=r"draws 7 slices, the volume has 6"):
        reconstruct(tiny_prior, phantom_volume, d3ip(slices=7))


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"start": 1000}, {"steps": 100, "start": 50}, {"eta": 1.5}, {"batch_size": 0}]
)
def test_bad_settings_are_refused(tiny_prior: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Reconstruction(str(tiny_prior), **settings)
