"""The Lightning loop: callbacks, checkpoints in the middle of a volume, several volumes, what of Lightning it needs."""

import gc
import itertools
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, quiet_trainer
from lightning import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from ddip_pl.adaptation import LoraTraining, VolumeAdaptation
from ddip_pl.data.module import Scan
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DiffusionMBIR, PosteriorMean
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.reconstruction import Reconstruction, Sampler, Step
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.results.result import Result

STATE = "reverse_diffusion.state_dict"


class Keep(ReconstructionCallback):
    """Keeps the results, and does something after a given step."""

    def __init__(self, at: int = 0, action: Any = None):
        self.at, self.action = at, action

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs

    def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
        if done == self.at:
            self.action(trainer)


def data(volume: Path, sigma_y: float = 2e-4) -> VolumeDataModule:
    return VolumeDataModule(str(volume), partial(ParallelBeamCT, angles=12), sigma_y=sigma_y, window=(-1000, 1000))


def reconstruct(
    prior: Path, volume: Path, adaptation: VolumeAdaptation | None = None, estimator: PosteriorMean | None = None,
    keep: Keep | None = None, ckpt_path: Path | None = None, sigma_y: float = 2e-4, **changes: Any,
) -> Result:  # fmt: skip
    seed_everything(0, verbose=False)
    sampler = replace(Sampler.published(), **({"steps": 6} | changes))
    method = Reconstruction(str(prior), estimator or DDS(5, gamma="infinite"), adaptation, sampler, batch_size=4)
    keep = keep or Keep()
    quiet_trainer(keep).test(method, data(volume, sigma_y), ckpt_path=ckpt_path, verbose=False)
    return keep.result


def d3ip() -> VolumeAdaptation:
    return VolumeAdaptation(2, training=replace(LoraTraining.published(), steps=2))


METHODS: dict[str, dict[str, Any]] = {
    "dds": {},
    "d3ip": {"adaptation": d3ip},
    "mbir": {"estimator": partial(DiffusionMBIR, 0.1, 10.0), "averaging": 0.5, "spacing": 2.0},
    "planes": {"adaptation": d3ip, "planes": "all"},
}


def method(name: str) -> dict[str, Any]:
    """Settings of a method, with its own objects."""
    return {key: value() if callable(value) else value for key, value in METHODS[name].items()}


# --- callbacks ------------------------------------------------------------------------------------------------


def test_callbacks_hear_of_every_step_and_of_the_gradient_steps_within(tiny_prior: Path, phantom_volume: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    steps: list[Step] = []
    so_far: list[int] = []

    class Listen(ReconstructionCallback):
        def on_gradient_step_end(self, trainer: Any, done: int, steps: int) -> None:
            heard.append(("gradient", done, steps))

        def on_diffusion_step_end(self, trainer: Any, done: int, of: int, step: Step) -> None:
            heard.append(("diffusion", done, of))
            steps.append(step)
            so_far.append(len(trainer.lightning_module.loop.trajectory))

    sampler = replace(Sampler.published(), steps=3, start=600)
    module = Reconstruction(str(tiny_prior), DDS(5), d3ip(), sampler)
    (result,) = quiet_trainer(Listen()).predict(module, data(phantom_volume))  # type: ignore[misc]
    within = [("gradient", 1, 2), ("gradient", 2, 2)]
    assert heard == [*within, ("diffusion", 1, 3), *within, ("diffusion", 2, 3), ("diffusion", 3, 3)]
    assert so_far == [1, 2, 3]
    assert [dict(step.figures) for step in steps] == result.trajectory  # type: ignore[union-attr]
    assert all({"t", "residual", "seconds", "peak_memory_bytes"} <= step.figures.keys() for step in steps)
    assert torch.equal(steps[-1].images["estimate"], result.images)  # type: ignore[union-attr]


# --- going on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_saved_in_the_middle_and_continued_in_another_process(
    tiny_prior: Path, thick_volume: Path, tmp_path: Path, name: str
) -> None:
    """The first process is killed after step 3; the second one gives the volume of an uninterrupted run."""
    script = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]!r}
from pathlib import Path
from test_loop import Keep, method, reconstruct
def die(trainer):
    trainer.save_checkpoint({str(tmp_path / "last.ckpt")!r})
    os._exit(7)
reconstruct(Path({str(tiny_prior)!r}), Path({str(thick_volume)!r}), keep=Keep(3, die), **method({name!r}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ.copy())
    assert run.returncode == 7, run.stderr
    whole = reconstruct(tiny_prior, thick_volume, **method(name))
    steps: list[int] = []
    keep = Keep(4, lambda trainer: steps.append(trainer.lightning_module.loop.step))
    continued = reconstruct(tiny_prior, thick_volume, keep=keep, ckpt_path=tmp_path / "last.ckpt", **method(name))
    assert steps == [4]
    assert torch.equal(continued.images, whole.images)
    assert len(continued.trajectory) == len(whole.trajectory) == 6
    assert len(continued.weights.tensors) == len(whole.weights.tensors)
    for weight, value in whole.weights.tensors.items():
        assert torch.equal(continued.weights.tensors[weight], value)


def test_checkpoint_holds_average_and_memory(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    """Without either of them, the result differs: both matter."""
    path = tmp_path / "last.ckpt"
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(path))
    # With this rho the split variables are far from converged after five iterations.
    estimator = DiffusionMBIR(1e-2, 1e-1, iterations=5, cg_iterations=5, discrepancy=0)
    settings: dict[str, Any] = {"estimator": estimator, "averaging": 0.5, "steps": 3, "start": 500}
    whole = reconstruct(tiny_prior, phantom_volume, keep=keep, **settings).images
    saved = torch.load(path, weights_only=True)
    state = saved["loops"]["test_loop"][STATE]["process"]
    assert state["mean"].shape == (1, *whole.shape)
    [memory] = state["memory"]
    assert {name: value.shape for name, value in memory.items()} == {
        "d": (1, *whole.shape),
        "u": (1, *whole.shape),
    }
    assert torch.equal(reconstruct(tiny_prior, phantom_volume, ckpt_path=path, **settings).images, whole)
    for name, nothing in {"mean": None, "memory": [{}]}.items():
        kept, state[name] = state[name], nothing
        torch.save(saved, tmp_path / "less.ckpt")
        state[name] = kept
        less = reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "less.ckpt", **settings).images
        assert (less - whole).norm() > 1e-4 * whole.norm()


def test_lightning_still_has_what_the_loop_builds_on(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    """Lightning's loop classes are not part of its public interface; this fails first when a release changes them."""
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "last.ckpt"))
    reconstruct(tiny_prior, phantom_volume, keep=keep)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "loops" in saved, "Lightning no longer saves its loops in checkpoints"
    assert STATE in saved["loops"]["test_loop"], "Lightning no longer saves the state of child loops"
    assert saved["loops"]["test_loop"][STATE]["process"]["step"] == 2
    assert saved["state_dict"] == {}, "the frozen prior does not belong into a checkpoint"


def test_checkpoint_of_another_run_is_refused(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "last.ckpt"))
    reconstruct(tiny_prior, phantom_volume, keep=keep)
    with pytest.raises(InputError, match="the checkpoint is of 1 x 6 slices, 6 steps from 980"):
        reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "last.ckpt", steps=5)
    with pytest.raises(InputError, match="another measurement of phantom"):  # with other noise
        reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "last.ckpt", sigma_y=0.05)


# --- several volumes ------------------------------------------------------------------------------------------


def test_every_volume_starts_anew_and_nothing_of_it_is_kept(
    tiny_prior: Path, phantom_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[weakref.ref[Any]] = []
    begin = Reconstruction.begin

    def watch(self: Any, *arguments: Any) -> Any:
        run = begin(self, *arguments)
        runs.append(weakref.ref(run))
        return run

    monkeypatch.setattr(Reconstruction, "begin", watch)
    keep = Keep()
    sampler = replace(Sampler.published(), steps=2, averaging=0.5)
    module, trainer = Reconstruction(str(tiny_prior), DiffusionMBIR(), sampler=sampler), quiet_trainer(keep)
    volumes = []
    for _ in range(2):
        seed_everything(0, verbose=False)
        trainer.test(module, data(phantom_volume), verbose=False)
        volumes.append(keep.result.images)
    assert torch.equal(*volumes)
    gc.collect()
    assert [run() for run in runs] == [None, None]


def predict(prior: Path, scans: list[Scan], callback: Any = None, ckpt_path: Path | None = None) -> list[Tensor]:
    """All volumes of one run, adapted."""
    seed_everything(0, verbose=False)
    trainer = quiet_trainer(*([callback] if callback else []))
    sampler = replace(Sampler.published(), steps=4, start=500)
    module = Reconstruction(str(prior), DDS(5, gamma="infinite"), d3ip(), sampler)
    results: Any = trainer.predict(module, DataLoader(scans, batch_size=None), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return [result.images for result in results]


@pytest.fixture(scope="module")
def two_scans(phantom_volume: Path) -> list[Scan]:
    measurement, frame = data(phantom_volume).simulate(32)
    other: Measurement = replace(measurement, y=measurement.y.flip(0))
    return [Scan(measurement, frame), Scan(other, replace(frame, name="other"))]


def test_a_volume_does_not_depend_on_what_was_reconstructed_before(tiny_prior: Path, two_scans: list[Scan]) -> None:
    _, second = predict(tiny_prior, two_scans)
    [alone] = predict(tiny_prior, two_scans[1:])
    assert torch.equal(second, alone)


def test_a_run_of_several_volumes_goes_on_with_the_one_that_was_interrupted(
    tiny_prior: Path, two_scans: list[Scan], tmp_path: Path
) -> None:
    path, steps = tmp_path / "last.ckpt", itertools.count(1)

    class Save(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, *_: Any) -> None:
            if next(steps) == 4 + 2:  # the second step of the second volume
                trainer.save_checkpoint(path)

    whole = predict(tiny_prior, two_scans, Save())
    heard: list[int] = []

    class Count(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, done: int, *_: Any) -> None:
            heard.append(done)

    continued = predict(tiny_prior, two_scans, Count(), path)
    assert heard == [1, 2, 3, 4, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole, continued, strict=True))
    third = Scan(two_scans[1].measurement, replace(two_scans[1].frame, name="third"))
    with pytest.raises(InputError, match="the checkpoint is of other, the data are of third"):
        predict(tiny_prior, [two_scans[0], third], None, path)
