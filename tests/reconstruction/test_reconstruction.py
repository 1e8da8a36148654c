"""The reverse diffusion loop: what it computes, how it adapts, that it can be killed and continued."""

import itertools
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import ROOT, make_network
from lightning import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from ddip_pl.adaptation import Adaptation, VolumeAdaptation
from ddip_pl.data.module import MeasurementDataModule
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DiffusionMBIR, Estimate, Memory, PosteriorMean
from ddip_pl.physics import SENSE, Birdcage, Measurement, ParallelBeamCT, RandomLines, SingleCoilMRI, simulate
from ddip_pl.physics.operator import height_width
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.prior.schedule import ddim_step, noise_schedule, slerp, tweedie
from ddip_pl.prior.unet import UNet
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import SHIPPED_PRIORS, Reconstruction, Result


class Keep(ReconstructionCallback):
    """Keeps the results, and does something after a given step."""

    def __init__(self, at: int = 0, action: Any = None):
        self.at, self.action = at, action

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs

    def on_diffusion_step_end(self, trainer: Any, step: int, steps: int, row: dict[str, float], images: Any) -> None:
        if step == self.at:
            self.action(trainer)


def reconstruct(
    prior: Path, volume: Path, adaptation: Adaptation | None = None, keep: Keep | None = None,
    ckpt_path: Path | None = None, seed: int = 0, sigma_y: float = 2e-4, **settings: Any,
) -> Result:  # fmt: skip
    seed_everything(seed, verbose=False)
    module = Reconstruction(str(prior), adaptation=adaptation, **({"steps": 6, "batch_size": 4} | settings))
    data = VolumeDataModule(str(volume), partial(ParallelBeamCT, angles=12), sigma_y=sigma_y, window=(-1000, 1000))
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
            mean, _ = DDS(5).condition(tweedie(x, eps, abar[t]), measurement, {})
            x = ddim_step(mean, eps, torch.randn(x.shape), abar[t_next], 0.85)
    assert torch.allclose(result.images, x, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "far"),
    [(32, False), (16, False), (15, True), (128, False), (129, True), ((129, 8), True), ((128, 8), False)],
)
def test_it_is_said_when_images_are_far_from_the_priors_size(
    tiny_prior: Path, size: int | tuple[int, int], far: bool, caplog: pytest.LogCaptureFixture
) -> None:
    operator = SingleCoilMRI(size, torch.ones(height_width(size)))
    height, width = height_width(size)
    measurement = Measurement(operator(torch.ones(1, 1, height, width)), operator, 0.1, "flat")
    messages: list[list[str]] = []
    name = "ddip_pl.reconstruction.module"
    keep = Keep(1, lambda trainer: messages.append([r.getMessage() for r in caplog.records if r.name == name]))
    trainer = ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[keep],
        enable_model_summary=False,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "ddip_pl"):
        trainer.predict(Reconstruction(str(tiny_prior), DDS(1), steps=1), DataLoader([measurement], batch_size=None))  # type: ignore[arg-type]
    expected = [
        f"images of {height} x {width} pixels are far from the prior's 32 x 32, results may suffer; "
        "bring volumes to data.size 32, or train a prior near this size with ddip-pl fit (docs/sizes.md)"
    ]
    assert messages == [expected if far else []]  # said before the first step


@pytest.mark.parametrize("planes", ["slices", "all"])
def test_no_more_slices_than_the_batch_size_pass_through_the_network_at_once(
    tiny_prior: Path, thick_volume: Path, planes: Any
) -> None:
    seen: list[int] = []
    module = Reconstruction(str(tiny_prior), steps=3, batch_size=3, planes=planes)
    module.denoiser.network.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    data = VolumeDataModule(str(thick_volume), partial(ParallelBeamCT, angles=12), 2e-4, slices=8)
    ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).predict(module, data)  # fmt: skip
    assert max(seen) == 3
    assert sum(seen) == (24 if planes == "slices" else 8 + 32 + 32)


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
    figures = [adaptation.adapt(DDS(1), x_t, 500) for _ in range(3)]
    assert figures[2]["loss_after"] < 0.9 * figures[0]["loss_before"]
    assert figures[0]["loss_after"] < figures[0]["loss_before"]
    weights = adaptation.finish()
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    after = module.denoiser.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_horizon_limits_adaptation(tiny_prior: Path, phantom_volume: Path) -> None:
    result = reconstruct(tiny_prior, phantom_volume, d3ip(steps=1, horizon=300), steps=11, start=1000 - 10)
    adapted = [row["t"] for row in result.trajectory if "loss_after" in row]
    assert adapted == [t for t in range(990, -1, -99) if 300 <= t <= 700]


def test_loss_uses_the_estimator_of_sampling(tiny_prior: Path, phantom_volume: Path) -> None:
    calls: list[tuple[int, bool, Memory | None]] = []

    class Spy(DDS):
        def __call__(self, denoiser: Any, x_t: Tensor, t: int, measurement: Any, memory: Any = None) -> Estimate:
            calls.append((len(x_t), torch.is_grad_enabled(), memory))
            mean, eps, _ = super().__call__(denoiser, x_t, t, measurement, memory)
            return Estimate(mean, eps, {"seen": torch.tensor(len(calls))})

    reconstruct(tiny_prior, phantom_volume, d3ip(), estimator=Spy(), steps=2, start=700)
    assert calls[:3] == [(2, True, None), (2, True, None), (6, False, {})]
    assert calls[-1] == (6, False, {"seen": torch.tensor(3)})  # of the step before, not of the loss in between


def test_adaptation_and_coupled_slices_go_together(tiny_prior: Path, phantom_volume: Path) -> None:
    estimator = DiffusionMBIR(cg_iterations=2, iterations=2)
    result = reconstruct(tiny_prior, phantom_volume, d3ip(), estimator=estimator, steps=3, start=500)
    assert result.images.isfinite().all()
    assert sum("loss_after" in row for row in result.trajectory) == 2
    assert any(value.abs().max() > 0 for name, value in result.weights.items() if "lora_B" in name)


class Scripted(PosteriorMean):
    """Means and noises known beforehand; keeps the `x_t` that it is given."""

    def __init__(self, seed: int = 5):
        self.generator = torch.Generator().manual_seed(seed)
        self.seen: list[tuple[int, Tensor]] = []
        self.means: list[Tensor] = []
        self.noises: list[Tensor] = []

    def __call__(
        self, denoiser: Any, x_t: Tensor, t: int, measurement: Measurement, memory: Memory | None = None
    ) -> Estimate:
        self.seen.append((t, x_t.clone()))
        self.means.append(torch.rand(x_t.shape, generator=self.generator))
        self.noises.append(torch.randn(x_t.shape, generator=self.generator))
        return Estimate(self.means[-1], self.noises[-1], {})

    def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
        raise NotImplementedError


@pytest.mark.parametrize("averaging", [0.0, 0.5, 0.9])
def test_every_step_goes_on_from_the_running_average(tiny_prior: Path, phantom_volume: Path, averaging: float) -> None:
    estimator = Scripted()
    result = reconstruct(
        tiny_prior, phantom_volume, estimator=estimator, averaging=averaging, eta=0.0, steps=4, start=300
    )
    average = estimator.means[0]
    averages = [average := averaging * average + (1 - averaging) * mean for mean in estimator.means]
    abar = noise_schedule()
    for i in range(3):
        t, x = estimator.seen[i + 1]
        assert torch.allclose(x, abar[t].sqrt() * averages[i] + (1 - abar[t]).sqrt() * estimator.noises[i], atol=1e-5)
    assert torch.allclose(result.images, averages[3], atol=1e-6)
    measurement = result.measurement
    residuals = [float(measurement.residual(mean).norm() / measurement.y.norm()) for mean in averages]
    assert [row["residual"] for row in result.trajectory] == pytest.approx(residuals, rel=1e-4)


def test_without_averaging_and_with_even_spacing_by_default(tiny_prior: Path, phantom_volume: Path) -> None:
    default = reconstruct(tiny_prior, phantom_volume, steps=3).images
    assert torch.equal(reconstruct(tiny_prior, phantom_volume, steps=3, averaging=0.0, spacing=1.0).images, default)
    assert not torch.allclose(
        reconstruct(tiny_prior, phantom_volume, steps=3, averaging=0.5).images, default, atol=1e-4
    )


def test_average_and_memory_start_anew_with_every_volume(tiny_prior: Path, phantom_volume: Path) -> None:
    keep = Keep()
    module = Reconstruction(str(tiny_prior), DiffusionMBIR(), steps=2, averaging=0.5)
    data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000))
    trainer = ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[keep],
        enable_model_summary=False,
    )  # fmt: skip
    volumes = []
    for _ in range(2):
        seed_everything(0, verbose=False)
        trainer.test(module, data, verbose=False)
        volumes.append(keep.result.images)
        loop = trainer.test_loop.reverse_diffusion  # type: ignore[attr-defined]
        assert (loop.x, loop.mean, loop.memory) == (None, None, {})
    assert torch.equal(*volumes)


def test_planes_take_turns_in_sampling_and_slices_are_adapted(tiny_prior: Path, thick_volume: Path) -> None:
    shapes: list[tuple[bool, torch.Size]] = []

    class Spy(DDS):
        def __call__(self, denoiser: Any, x_t: Any, *arguments: Any, **named: Any) -> Any:
            shapes.append((torch.is_grad_enabled(), x_t.permute(denoiser.plane).shape))
            return super().__call__(denoiser, x_t, *arguments, **named)

    result = reconstruct(
        tiny_prior, thick_volume, d3ip(steps=1, slices=2), estimator=Spy(), steps=4, start=500, planes="all"
    )
    height, width = result.images.shape[2:]
    sampled = [(8, 1, height, width), (height, 1, 8, width), (width, 1, height, 8), (8, 1, height, width)]
    assert [shape for adapting, shape in shapes if not adapting] == sampled
    assert {shape for adapting, shape in shapes if adapting} == {(2, 1, height, width)}


def test_few_slices_are_not_cut_across(tiny_prior: Path, phantom_volume: Path) -> None:
    slices, both = (reconstruct(tiny_prior, phantom_volume, steps=2, planes=p).images for p in ("slices", "all"))
    assert torch.equal(slices, both)


def test_spacing_puts_more_of_the_steps_at_the_end(tiny_prior: Path, phantom_volume: Path) -> None:
    estimator = Scripted()
    result = reconstruct(tiny_prior, phantom_volume, estimator=estimator, steps=5, start=800, spacing=2.0)
    assert [row["t"] for row in result.trajectory] == [800, 450, 200, 50, 0]
    assert [t for t, _ in estimator.seen] == [800, 450, 200, 50, 0]


def test_estimator_is_given_its_memory_back(tiny_prior: Path, phantom_volume: Path) -> None:
    given: list[Memory] = []
    returned: list[Memory] = []

    class Spy(DiffusionMBIR):
        def condition(self, x0_hat: Tensor, measurement: Measurement, memory: Memory) -> tuple[Tensor, Memory]:
            mean, after = super().condition(x0_hat, measurement, memory)
            given.append(memory)
            returned.append(after)
            return mean, after

    reconstruct(tiny_prior, phantom_volume, estimator=Spy(), steps=3)
    assert given[0] == {}
    assert all(before["d"] is after["d"] for before, after in zip(returned[:2], given[1:], strict=True))


def test_trajectory_has_every_step_and_ends_near_the_data(tiny_prior: Path, phantom_volume: Path) -> None:
    result = reconstruct(tiny_prior, phantom_volume, estimator=DDS(20))
    assert [row["t"] for row in result.trajectory] == [980, 784, 588, 392, 196, 0]
    assert result.trajectory[-1]["residual"] < 0.5 * result.trajectory[0]["residual"]
    y = result.measurement.y
    residual = (result.measurement.operator(result.images) - y).norm() / y.norm()
    assert result.trajectory[-1]["residual"] == pytest.approx(float(residual), rel=1e-4)


METHODS: dict[str, dict[str, Any]] = {
    "dds": {},
    "d3ip": {"adaptation": d3ip},
    "mbir": {"estimator": DiffusionMBIR, "averaging": 0.5, "spacing": 2.0},
    "planes": {"adaptation": d3ip, "planes": "all"},
}


def method(name: str) -> dict[str, Any]:
    """Settings of a method, with parts of its own."""
    return {key: value() if callable(value) else value for key, value in METHODS[name].items()}


@pytest.mark.parametrize("name", METHODS)
def test_saved_in_the_middle_and_continued_in_another_process(
    tiny_prior: Path, thick_volume: Path, tmp_path: Path, name: str
) -> None:
    """The first process dies without a word behind step 3; the second one's volume is that of an uninterrupted run."""
    script = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests")]!r}
from pathlib import Path
from test_reconstruction import Keep, method, reconstruct
def die(trainer):
    trainer.save_checkpoint({str(tmp_path / "last.ckpt")!r})
    os._exit(7)
reconstruct(Path({str(tiny_prior)!r}), Path({str(thick_volume)!r}), keep=Keep(3, die), **method({name!r}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ.copy())
    assert run.returncode == 7, run.stderr
    whole = reconstruct(tiny_prior, thick_volume, **method(name))
    steps: list[int] = []
    keep = Keep(4, lambda trainer: steps.append(trainer.reverse_diffusion.step))
    continued = reconstruct(
        tiny_prior, thick_volume, keep=keep, ckpt_path=tmp_path / "last.ckpt", seed=0, **method(name)
    )
    assert steps == [4]
    assert torch.equal(continued.images, whole.images)
    assert len(continued.trajectory) == len(whole.trajectory) == 6
    assert len(continued.weights) == len(whole.weights)
    for weight, value in whole.weights.items():
        assert torch.equal(continued.weights[weight], value)


def test_checkpoint_holds_average_and_memory(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    """Without either of them, the run goes elsewhere: both matter to what comes out."""
    path = tmp_path / "last.ckpt"
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(path))
    # A rho at which the split variables of five iterations are far from settled.
    settings: dict[str, Any] = {"estimator": DiffusionMBIR(1e-2, 1e-1), "averaging": 0.5, "steps": 3, "start": 500}
    whole = reconstruct(tiny_prior, phantom_volume, keep=keep, **settings).images
    saved = torch.load(path, weights_only=True)
    state = saved["loops"]["test_loop"]["reverse_diffusion.state_dict"]
    assert state["mean"].shape == whole.shape
    assert {name: value.shape for name, value in state["memory"].items()} == {
        "d": (1, *whole.shape),
        "u": (1, *whole.shape),
    }
    assert torch.equal(reconstruct(tiny_prior, phantom_volume, ckpt_path=path, **settings).images, whole)
    for name, nothing in {"mean": None, "memory": {}}.items():
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
    key = "reverse_diffusion.state_dict"
    assert key in saved["loops"]["test_loop"], "Lightning no longer saves the state of child loops"
    assert saved["loops"]["test_loop"][key]["step"] == 2
    assert saved["state_dict"] == {}, "the frozen prior does not belong into a checkpoint"


def test_checkpoint_of_another_run_is_refused(tiny_prior: Path, phantom_volume: Path, tmp_path: Path) -> None:
    keep = Keep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "last.ckpt"))
    reconstruct(tiny_prior, phantom_volume, keep=keep)
    with pytest.raises(InputError, match="the checkpoint is of phantom, 6 slices, 6 steps from 980"):
        reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "last.ckpt", steps=5)
    with pytest.raises(InputError, match="another measurement of phantom"):  # its noise is another
        reconstruct(tiny_prior, phantom_volume, ckpt_path=tmp_path / "last.ckpt", sigma_y=0.05)


def test_network_never_sees_more_than_a_batch(
    tiny_prior: Path, phantom_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network needs most of the memory of a step, and that does not grow with the number of slices."""
    sizes: list[int] = []
    forward = UNet.forward

    def spy(network: UNet, x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(network, x, t)

    monkeypatch.setattr(UNet, "forward", spy)
    reconstruct(tiny_prior, phantom_volume, batch_size=4, steps=2)
    assert sizes == [4, 2] * 2
    sizes.clear()
    reconstruct(tiny_prior, phantom_volume, d3ip(slices=3), batch_size=2, steps=2, start=500)
    assert max(sizes) == 2


@pytest.mark.parametrize("name", ["dds", "mbir"])
def test_batch_size_changes_nothing_but_rounding(tiny_prior: Path, phantom_volume: Path, name: str) -> None:
    one, all_at_once = (
        reconstruct(tiny_prior, phantom_volume, batch_size=size, steps=3, **method(name)).images for size in (1, 100)
    )
    assert (one - all_at_once).norm() < 1e-5 * all_at_once.norm()


def test_single_slice_cannot_be_coupled(tiny_prior: Path, phantom_volume: Path) -> None:
    seed_everything(0, verbose=False)
    data = VolumeDataModule(
        str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000), slices=1
    )
    trainer = ReconstructionTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match=r"given one; give a volume of at least 2 \(data\.slices\)"):
        trainer.test(Reconstruction(str(tiny_prior), DiffusionMBIR(), steps=2), data)


def test_more_slices_for_a_gradient_step_than_there_are(tiny_prior: Path, phantom_volume: Path) -> None:
    with pytest.raises(InputError, match=r"draws 7 slices, the volume has 6"):
        reconstruct(tiny_prior, phantom_volume, d3ip(slices=7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "0 steps"),
        ({"start": 1000}, "from timestep 1000"),
        ({"steps": 100, "start": 50}, "100 steps from timestep 50"),
        ({"spacing": 0.0}, "model.spacing is 0.0"),
        ({"spacing": -1.0}, "model.spacing is -1.0"),
        ({"spacing": float("nan")}, "model.spacing is nan"),
        ({"eta": 1.5}, "model.eta is 1.5"),
        ({"averaging": 1.0}, "model.averaging is 1.0"),
        ({"averaging": -0.1}, "model.averaging is -0.1"),
        ({"averaging": float("nan")}, "model.averaging is nan"),
        ({"batch_size": 0}, "model.batch_size is 0"),
    ],
)
def test_bad_settings_are_refused(tiny_prior: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reconstruction(str(tiny_prior), **settings)


@pytest.mark.parametrize("initial_noise", ["interpolated", "independent"])
def test_noise_of_neighbouring_slices_in_the_beginning(
    tiny_prior: Path, thick_volume: Path, initial_noise: str
) -> None:
    estimator = Scripted()
    result = reconstruct(tiny_prior, thick_volume, estimator=estimator, steps=2, start=999, initial_noise=initial_noise)
    abar = noise_schedule()[999]
    guess = result.measurement.operator.pseudo_inverse(result.measurement.y)
    noise = (estimator.seen[0][1] - abar.sqrt() * guess) / (1 - abar).sqrt()
    alike = torch.corrcoef(noise.flatten(1))
    assert noise.std() == pytest.approx(1, abs=0.05)
    neighbours, ends = float(alike.diagonal(1).mean()), float(alike[0, -1])
    assert abs(ends) < 0.15
    assert neighbours > 0.9 if initial_noise == "interpolated" else abs(neighbours) < 0.15


def test_shipped_prior_has_the_channels_of_the_operator(phantom_volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priors = {}
    for path in SHIPPED_PRIORS.values():
        assert Path(path).is_file()
    for channels in (1, 2):
        priors[channels] = str(phantom_volume.parent / f"{channels}.safetensors")
        save_prior(Path(priors[channels]), make_network(in_channels=channels, out_channels=channels), {}, torch.float32)
    monkeypatch.setattr("ddip_pl.reconstruction.module.SHIPPED_PRIORS", priors)
    module = Reconstruction(steps=1, start=100)
    trainer = ReconstructionTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    ct, mri = partial(ParallelBeamCT, angles=12), partial(SENSE, mask=RandomLines(2), maps=Birdcage(2))
    for operator, channels in ((ct, 1), (mri, 2), (ct, 1)):
        data = VolumeDataModule(str(phantom_volume), operator, 1e-2, size=32)
        result = cast(Any, trainer.predict(module, data))[0]
        assert result.images.shape == (6, channels, 32, 32)
        assert module.prior == priors[channels]


class Several(MeasurementDataModule):
    """Measurements that are there already."""

    def __init__(self, measurements: list[Measurement]):
        super().__init__()
        self.measurements = measurements

    def setup(self, stage: str) -> None:
        pass


def predict(
    prior: Path, measurements: list[Measurement], callback: Any = None, ckpt_path: Path | None = None
) -> list[Tensor]:
    """All volumes of one run, adapted."""
    seed_everything(0, verbose=False)
    trainer = ReconstructionTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callback and [callback],
    )  # fmt: skip
    module = Reconstruction(str(prior), adaptation=d3ip(), steps=4, start=500)
    return [result.images for result in trainer.predict(module, Several(measurements), ckpt_path=ckpt_path)]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def two_scans(phantom_volume: Path) -> list[Measurement]:
    data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000))
    one = data.simulate(ParallelBeamCT(32, angles=12))
    return [one, replace(one, y=one.y.flip(0), name="other")]


def test_a_volume_does_not_depend_on_what_was_reconstructed_before(
    tiny_prior: Path, two_scans: list[Measurement]
) -> None:
    _, second = predict(tiny_prior, two_scans)
    [alone] = predict(tiny_prior, two_scans[1:])
    assert torch.equal(second, alone)


def test_a_run_of_several_volumes_goes_on_with_the_one_that_was_interrupted(
    tiny_prior: Path, two_scans: list[Measurement], tmp_path: Path
) -> None:
    path, steps = tmp_path / "last.ckpt", itertools.count(1)

    class Save(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, *_: Any) -> None:
            if next(steps) == 4 + 2:  # the second step of the second volume
                trainer.save_checkpoint(path)

    whole = predict(tiny_prior, two_scans, Save())
    done: list[int] = []

    class Count(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, step: int, *_: Any) -> None:
            done.append(step)

    continued = predict(tiny_prior, two_scans, Count(), path)
    assert done == [1, 2, 3, 4, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole, continued, strict=True))
    with pytest.raises(InputError, match="the checkpoint is of other, 6 slices, 4 steps from 500"):
        predict(tiny_prior, [two_scans[1], replace(two_scans[1], name="third")], None, path)


def test_slices_of_different_masks_stop_at_noise_levels_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.stack([torch.rand(32, 32, generator=generator) < share for share in (0.1, 1.0)])
    operator = SingleCoilMRI(32, mask)
    truth = torch.rand(2, 1, 32, 32, generator=generator)
    measurement = Measurement(simulate(truth, operator, 0.1, generator), operator, 0.1, "x")
    mean, _ = DDS(20, discrepancy=1).condition(torch.zeros_like(truth), measurement, {})
    energy = measurement.residual(mean).abs().square().flatten(1).sum(1)
    torch.testing.assert_close(energy / (0.01 * mask.flatten(1).sum(1)), torch.ones(2), atol=0.02, rtol=0)
