"""Slicewise, volume and meta adaptation: what they train, that slices at once are slices one by one, what they save."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network, quiet_trainer
from lightning import seed_everything
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ddip_pl.adaptation import (
    Adaptation,
    Adapted,
    AdaptedWeights,
    LoraTraining,
    LoraWeights,
    MetaAdaptation,
    NoAdaptation,
    SelfTraining,
    SlicewiseAdaptation,
    VolumeAdaptation,
)  # fmt: skip
from ddip_pl.adaptation.adaptation import ignore
from ddip_pl.adaptation.lora import LoRA
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DiffusionMBIR, Estimate
from ddip_pl.methods.shipped import load_method
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior import unet
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.tensors import read_tensors
from ddip_pl.reconstruction import Reconstruction, Sampler, Step
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.results.result import Result

SIZE, SLICES = 16, 5


def make_denoiser(batch_size: int = 8, **settings: Any) -> Denoiser:
    return Denoiser(make_network(**settings), batch_size).requires_grad_(False)


def images(slices: int = SLICES, seed: int = 0) -> Tensor:
    return torch.rand(slices, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def measure(slices: int = SLICES, sigma_y: float = 0.0) -> Measurement:
    operator = ParallelBeamCT((slices, SIZE, SIZE), angles=8)
    return Measurement(operator(images(slices)), operator, sigma_y)


def training(**changes: Any) -> LoraTraining:
    """The paper's settings, except for these."""
    return replace(LoraTraining.published(), **changes)


def start(adaptation: Any, denoiser: Denoiser, measurement: Measurement) -> Any:
    torch.manual_seed(0)  # the initial factors
    adaptation.start(denoiser, measurement)
    return adaptation


def alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() < tolerance * b.norm())


# --- many slices at once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False], ids=["strided", "pooled"])
def test_a_batch_of_slices_is_pefts_own_layers_one_by_one(strided: bool, bias: bool) -> None:
    """Values and gradients, in every kind of layer, with stride and without."""
    settings = {"resblock_updown": not strided}
    x, one_by_one, gradients = images(3), [], []
    plain = make_denoiser(**settings)
    before = plain(x, 300)[1]
    lora = LoRA(plain.network, bias=bias)
    values = 0.1 * torch.randn(3, len(lora.flat()), generator=torch.Generator().manual_seed(1))
    lora._tuner.enable_adapter_layers()
    for i in range(3):
        lora.load_state_dict({name: value[i] for name, value in lora.split(values).items()})
        eps = plain(x[i : i + 1], 300)[1]
        grads = torch.autograd.grad(eps.square().sum(), lora.parameters())
        one_by_one.append(eps.detach())
        gradients.append(torch.cat([g.flatten() for g in grads]))

    denoiser = make_denoiser(**settings)
    own = LoRA(denoiser.network, bias=bias, slicewise=True)
    vectors = values.clone().requires_grad_()
    eps = denoiser.with_weights(own.split(vectors), slicewise=True)(x, 300)[1]
    eps.square().sum().backward()
    assert vectors.grad is not None
    for i in range(3):
        assert alike(eps[i : i + 1], one_by_one[i], 1e-5)
        assert not alike(eps[i : i + 1], before[i : i + 1], 1e-2)
        assert alike(vectors.grad[i], gradients[i], 1e-4)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in float64. AdamW divides a gradient by its size, so a gradient that is only rounding error (such as a bias
    that normalisation removes) would give a step in an arbitrary direction in float32."""
    embedding = unet.timestep_embedding
    monkeypatch.setattr(unet, "timestep_embedding", lambda t, channels: embedding(t, channels).double())


def adapted(
    batch_size: int, slices: slice = slice(None), sigma_y: float = 0.0, **settings: Any
) -> tuple[Tensor, Tensor]:
    """The change of the slices' weights in six gradient steps at two timesteps, and the last losses."""
    measurement = measure(sigma_y=sigma_y).to(torch.float64)[slices]
    adaptation = SlicewiseAdaptation(training(**({"steps": 3, "horizon": 0} | settings)))
    start(adaptation, make_denoiser(batch_size).double(), measurement)
    first = adaptation.average.clone()
    for t in (200, 100):
        adaptation.adapt(DDS(2), images(seed=t)[slices].double(), t)
    with torch.no_grad():
        x_t = images(seed=200)[slices].double()
        losses, _ = adaptation.losses(DDS(2), adaptation.adapted, x_t, 200, measurement)
    return torch.stack([theta.detach() for theta in adaptation.theta]) - first, losses


@pytest.mark.usefixtures("double")
def test_adapted_at_once_one_by_one_and_alone() -> None:
    at_once, _ = adapted(SLICES)
    assert alike(adapted(1)[0], at_once, 1e-6)
    assert alike(adapted(2)[0], at_once, 1e-6)
    assert alike(adapted(8, slice(3, 4))[0], at_once[3:4], 1e-6)
    assert not any(alike(at_once[i], at_once[i + 1], 0.2) for i in range(SLICES - 1))


@pytest.mark.usefixtures("double")
def test_each_slice_stops_at_the_level_of_the_noise() -> None:
    plain, _ = adapted(SLICES)
    _, losses = adapted(SLICES, learning_rate=1e-30)  # of the unadapted prior, at the first timestep
    order = losses.argsort()
    level = float(losses[order[1]] + losses[order[2]]) / 2  # two slices are below, three are above
    stopped: dict[str, Any] = {
        "discrepancy": 1.0,
        "sigma_y": (level / 1.01 / measure(sigma_y=1.0).noise_energy()[0].item()) ** 0.5,
    }
    after_one = adapted(SLICES, steps=1, horizon=150, **stopped)[0]
    assert set(after_one.norm(dim=1).nonzero().flatten().tolist()) == set(order[2:].tolist())
    # A slice that stops changes nothing for the others.
    together = adapted(SLICES, **stopped)[0]
    assert alike(together, adapted(1, **stopped)[0], 1e-6)
    assert not alike(together, plain, 0.05)


def test_denoiser_gives_every_slice_its_weights_batch_by_batch() -> None:
    denoiser = make_denoiser(8)
    before = denoiser(images(), 100)[1]
    adaptation = start(SlicewiseAdaptation(training(steps=2, learning_rate=1e-2)), denoiser, measure())
    assert alike(adaptation.adapted(images(), 100)[1], before, 1e-5)
    adapted, _ = adaptation.adapt(DDS(2), images(), 100)
    at_once = adapted(images(), 100)[1]
    assert not any(alike(a, b, 1e-3) for a, b in zip(at_once, before, strict=True))
    adapted.batches.size = 2
    assert alike(adapted(images(), 100)[1], at_once, 1e-5)
    assert alike(adapted.only(slice(3, 5))(images()[3:5], 100)[1], at_once[3:5], 1e-5)
    with pytest.raises(AssertionError):
        adapted(images()[3:5], 100)
    with pytest.raises(AssertionError):
        adapted.across("rows")


def test_network_is_left_as_it_was_found() -> None:
    denoiser = make_denoiser()
    modules = [type(module) for module in denoiser.modules()]
    before = denoiser(images(), 100)[1]
    adaptation = start(SlicewiseAdaptation(training(steps=1)), denoiser, measure())
    adaptation.adapt(DDS(2), images(), 100)
    adaptation.finish()
    assert [type(module) for module in denoiser.modules()] == modules
    assert torch.equal(denoiser(images(), 100)[1], before)
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_memory_of_a_gradient_step_is_that_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    losses = SlicewiseAdaptation.losses

    def spy(self: Any, estimator: Any, denoiser: Any, x_t: Tensor, t: int, part: Measurement) -> Any:
        sizes.append(len(part))
        return losses(self, estimator, denoiser, x_t, t, part)

    monkeypatch.setattr(SlicewiseAdaptation, "losses", spy)
    start(SlicewiseAdaptation(training(steps=3)), make_denoiser(2), measure()).adapt(DDS(2), images(), 100)
    assert sizes == [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]  # three steps and a look at their result


def test_sampling_uses_the_running_average_of_each_slice() -> None:
    first = start(SlicewiseAdaptation(), make_denoiser(), measure()).average
    adaptation = start(SlicewiseAdaptation(training(steps=1, horizon=0, ema=0.75)), make_denoiser(), measure())
    average = first
    for t in (200, 100):
        adapted, _ = adaptation.adapt(DDS(2), images(), t)
        latest = torch.stack([theta.detach() for theta in adaptation.theta])
        average = 0.75 * average + 0.25 * latest
        assert torch.allclose(adaptation.average, average, atol=1e-7)
        assert alike(torch.cat([w.flatten(1) for w in adapted.weights.values()], 1), average, 1e-6)
    assert not alike(latest - first, average - first, 0.1)


# --- loss and slices ------------------------------------------------------------------------------------------


class Spy(DDS):
    """Records whether it was called for the loss, and with how many slices."""

    def __init__(self, iterations: int):
        super().__init__(iterations)
        self.calls: list[tuple[bool, int]] = []

    def __call__(self, denoiser: Any, x_t: Tensor, t: int, measurement: Any, memory: Any = None) -> Estimate:
        self.calls.append((torch.is_grad_enabled(), len(x_t)))
        return super().__call__(denoiser, x_t, t, measurement, memory)


@pytest.mark.parametrize("kind", [partial(VolumeAdaptation, 3), SlicewiseAdaptation])
def test_loss_takes_the_estimator_of_sampling_or_another(kind: Any) -> None:
    sampling, loss = Spy(2), Spy(1)
    start(kind(training=training(steps=1)), make_denoiser(), measure()).adapt(sampling, images(), 100)
    assert sampling.calls == [(True, sampling.calls[0][1]), (False, sampling.calls[0][1])]
    other = training(steps=1, loss_estimator=loss)
    start(kind(training=other), make_denoiser(), measure()).adapt(sampling, images(), 100)
    assert len(sampling.calls) == len(loss.calls) == 2


def test_neighbouring_slices_are_drawn_from_the_whole_volume() -> None:
    torch.manual_seed(0)
    adaptation = VolumeAdaptation(slices=3, neighbours=True)
    adaptation.measurement = measure()
    drawn = {tuple(adaptation.draw_slices().tolist()) for _ in range(100)}
    assert drawn == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    adaptation.slices = SLICES
    assert adaptation.draw_slices().tolist() == [0, 1, 2, 3, 4]
    adaptation.slices, adaptation.neighbours = 3, False
    assert len({tuple(adaptation.draw_slices().tolist()) for _ in range(100)}) > 30


def test_adaptation_of_the_volume_lowers_its_loss_and_leaves_the_prior_as_it_was() -> None:
    denoiser = make_denoiser()
    before = {name: value.clone() for name, value in denoiser.network.state_dict().items()}
    volume = VolumeAdaptation(SLICES, training=training(steps=8, learning_rate=5e-3))
    adaptation = start(volume, denoiser, measure(sigma_y=2e-4))
    x_t = torch.randn(SLICES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    figures = [adaptation.adapt(DDS(1, gamma="infinite"), x_t, 500).figures for _ in range(3)]
    assert figures[2]["loss_after"] < 0.9 * figures[0]["loss_before"]
    assert figures[0]["loss_after"] < figures[0]["loss_before"]
    weights = adaptation.finish()
    assert any(value.abs().max() > 0 for name, value in weights.tensors.items() if "lora_B" in name)
    after = denoiser.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


# --- meta -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VolumeAdaptation, SlicewiseAdaptation])
def test_tells_of_every_gradient_step_and_of_the_losses_at_both_ends(kind: type) -> None:
    torch.manual_seed(0)
    told: list[tuple[int, int]] = []
    adaptation = start(kind(training=training(steps=4, learning_rate=1e-2)), make_denoiser(2), measure())
    _, figures = adaptation.adapt(DDS(2), images(), 100, lambda done, steps: told.append((done, steps)))
    batches = 1 if kind is VolumeAdaptation else len(torch.arange(SLICES).split(2))
    steps = 4 * batches
    assert told == [(done, steps) for done in range(1, steps + 1)]
    assert 0 < figures["loss_after"] < figures["loss_before"]
    assert figures["lora_norm"] > 0


class OneFurther(VolumeAdaptation):
    """Moves all weights by one at every timestep."""

    def adapt(self, estimator: Any, x_t: Tensor, t: int, on_gradient_step: Any = ignore) -> Adapted:
        if t > 900:
            return Adapted(self.adapted, {})
        self.latest = self.average = {name: value + 1 for name, value in self.latest.items()}
        self.use_average()
        return Adapted(self.adapted, {"loss_after": 0.0})


def test_reptile_goes_part_of_the_way_and_slices_start_there(tmp_path: Path) -> None:
    denoiser = make_denoiser()
    before = denoiser(images(), 100)[1]
    meta = start(MetaAdaptation(OneFurther(slices=2), SlicewiseAdaptation(training(steps=1))), denoiser, measure())
    first = meta.volume.lora.flat()
    alphas = {950: 0.0, 800: 0.5 + 0.5 * 800 / 950, 475: 0.75, 0: 0.5}
    reached = first
    for t, alpha in alphas.items():
        assert bool(meta.adapt(DDS(2), images(), t).figures) == (t != 950)
        reached = reached + alpha
        assert torch.allclose(meta.volume.lora.flat(), reached, atol=1e-4)
    meta.next_trajectory(images())
    assert torch.allclose(meta.slices.average, reached.expand(SLICES, -1), atol=1e-4)
    assert meta.adapt(DDS(2), images(), 100).figures
    assert not alike(meta.slices.average, reached.expand(SLICES, -1), 1e-6)
    assert meta.trajectories == 2
    meta.finish().save(tmp_path)
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {f"{i:04d}" for i in range(SLICES)}
    assert torch.equal(denoiser(images(), 100)[1], before)


# --- files ----------------------------------------------------------------------------------------------------


def trained(adaptation: Any, denoiser: Denoiser) -> Tensor:
    """The output of the denoiser after some training."""
    adapted, _ = start(adaptation, denoiser, measure()).adapt(DDS(2), images(), 100)
    return adapted(images(), 100)[1]


@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_a_volume_are_loaded_by_peft(tmp_path: Path, bias: bool) -> None:
    denoiser = make_denoiser()
    volume = VolumeAdaptation(2, training=training(steps=2, learning_rate=1e-2, bias=bias))
    eps = trained(volume, denoiser)
    weights = volume.finish()
    assert any(name.endswith("bias") and value.any() for name, value in weights.tensors.items()) == bias
    weights.save(tmp_path, "ellipses.safetensors", "0a1b")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "ellipses.safetensors"
    assert read_tensors(tmp_path / "lora" / "adapter_model.safetensors")[1]["prior_digest"] == "0a1b"
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    model: nn.Module = PeftModel.from_pretrained(make_network(), tmp_path / "lora")
    found = model(images(), torch.full((SLICES,), 100))
    assert alike(found, eps, 1e-5)
    assert not alike(found, make_network()(images(), torch.full((SLICES,), 100)), 1e-3)


def test_weights_come_back_to_start_from(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"volume": partial(VolumeAdaptation, 2), "slices": SlicewiseAdaptation}
    folders = {name: tmp_path / name / "lora" for name in kinds}
    for name, kind in kinds.items():
        adaptation = kind(training=training(steps=2, learning_rate=1e-2))
        eps = trained(adaptation, make_denoiser())
        adaptation.finish().save(tmp_path / name)
        again = start(kind(training=training(start_from=str(folders[name]))), make_denoiser(), measure())
        assert alike(again.adapted(images(), 100)[1], eps, 1e-5)
    assert sorted(path.name for path in folders["slices"].iterdir()) == [f"{i:04d}" for i in range(SLICES)]
    of_volume, of_slices = (LoraWeights.load(folder) for folder in folders.values())
    assert of_volume.of_slice(0).keys() == of_slices.of_slice(3).keys()
    # Slices may start from the volume's weights, but a volume cannot start from weights of slices.
    from_volume, from_slices = (training(start_from=str(folder)) for folder in folders.values())
    slicewise = start(SlicewiseAdaptation(from_volume), make_denoiser(), measure())
    assert torch.equal(slicewise.average[0], slicewise.average[4])
    with pytest.raises(InputError, match="weights for each of 5 slices; give one set"):
        start(VolumeAdaptation(2, training=from_slices), make_denoiser(), measure())
    with pytest.raises(InputError, match="each of 5 slices, the volume has 4"):
        start(SlicewiseAdaptation(from_slices), make_denoiser(), measure(4))


@pytest.mark.parametrize("kind", [partial(VolumeAdaptation, 2), SlicewiseAdaptation])
def test_lora_weights_are_counted_and_come_back_from_their_files(kind: Any, tmp_path: Path) -> None:
    adaptation = start(kind(training=training(rank=2, bias=False)), make_denoiser(), measure())
    count = sum(p.numel() for p in adaptation.lora.parameters())
    weights = adaptation.finish()
    assert weights.slices == (SLICES if kind is SlicewiseAdaptation else 0)
    assert weights.count == count * (weights.slices or 1)
    weights.save(tmp_path)
    loaded = LoraWeights.load(tmp_path / "lora")
    assert (loaded.rank, loaded.bias, loaded.slices) == (2, False, weights.slices)
    assert loaded.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in weights.tensors.items())


def test_other_weights_are_counted_and_written_as_they_are(tmp_path: Path) -> None:
    weights = AdaptedWeights({"first": torch.rand(2, 3), "second": torch.rand(4)})
    assert weights.count == 10
    weights.save(tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored.keys() == weights.tensors.keys()
    assert all(torch.equal(stored[name], value) for name, value in weights.tensors.items())


def test_no_adaptation_leaves_no_weights_and_no_files(tmp_path: Path) -> None:
    denoiser, adaptation = make_denoiser(), NoAdaptation()
    adaptation.start(denoiser, measure())
    assert adaptation.adapt(DDS(2), images(), 100) == (denoiser, {})
    weights = adaptation.finish()
    weights.save(tmp_path)
    assert weights.count == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    start(VolumeAdaptation(slices=2), make_denoiser(), measure()).finish().save(folder)
    return folder / "lora"


def test_files_that_cannot_be_used_are_refused(weights_folder: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as error:
            VolumeAdaptation(training=training(start_from=str(tmp_path)))
        return str(error.value)

    assert "no adapter_config.json" in refusal()
    settings = tmp_path / "adapter_config.json"
    settings.write_text("{")
    assert "cannot be read" in refusal()
    good = (weights_folder / "adapter_config.json").read_text()
    settings.write_text(good)
    assert "No such file" in refusal()  # there are no weights
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes((weights_folder / weights.name).read_bytes()[:5000])
    assert "truncated" in refusal()
    weights.write_bytes((weights_folder / weights.name).read_bytes())
    for change in ({"lora_alpha": 16}, {"peft_type": "IA3"}):
        settings.write_text(json.dumps(json.loads(good) | change))
        assert "not written by ddip-pl" in refusal()
    settings.write_text("[]")
    assert "not written by ddip-pl" in refusal()


@pytest.mark.parametrize("other", [{"rank": 2}, {"bias": False}, {"network": {"num_channels": 64}}])
def test_weights_of_another_shape_are_refused_and_leave_no_trace(weights_folder: Path, other: dict[str, Any]) -> None:
    denoiser = make_denoiser(**other.pop("network", {}))
    modules = [type(module) for module in denoiser.modules()]
    adaptation = SlicewiseAdaptation(training(start_from=str(weights_folder), **other))
    with pytest.raises(InputError, match="LoRA weights do not fit"):
        adaptation.start(denoiser, measure())
    assert [type(module) for module in denoiser.modules()] == modules


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VolumeAdaptation(slices=0), "slices is 0"),
        (lambda: VolumeAdaptation(dropout=1.0), "dropout is 1.0"),
        (lambda: VolumeAdaptation(dropout=-0.1), "dropout is -0.1"),
        (lambda: SelfTraining(crop=0), "crop is 0"),
        (lambda: SelfTraining(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: SelfTraining(slices=0), "slices is 0"),
        (lambda: SelfTraining(share=0.0), "share is 0.0; give a number above 0 and below 1"),
        (lambda: SelfTraining(latest=1001), "latest is 1001"),
        (lambda: LoraTraining(steps=0), "steps is 0"),
        (lambda: LoraTraining(learning_rate=-1e-3), "learning_rate is -0.001"),
        (lambda: LoraTraining(rank=0), "rank is 0"),
        (lambda: LoraTraining(horizon=500), "horizon is 500"),
        (
            lambda: MetaAdaptation(VolumeAdaptation(training=LoraTraining(rank=2))),
            "rank and bias are 2, True for the volume and 4, True",
        ),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_slices_that_start_elsewhere_are_refused_by_meta(weights_folder: Path) -> None:
    with pytest.raises(InputError, match=r"give volume\.start_from"):
        MetaAdaptation(slices=SlicewiseAdaptation(training(start_from=str(weights_folder))))


# --- whole runs -----------------------------------------------------------------------------------------------


def scd() -> Adaptation:
    return SlicewiseAdaptation(training(steps=2, loss_estimator=DDS(1)))


def ddip() -> Adaptation:
    return SlicewiseAdaptation(training(steps=2, ema=0.5, discrepancy=1.0))


def mbir() -> Adaptation:
    return VolumeAdaptation(3, neighbours=True, training=training(steps=2))


def meta() -> Adaptation:
    return MetaAdaptation(VolumeAdaptation(2, training=training(steps=1)), SlicewiseAdaptation(training(steps=1)))


class Keep(ReconstructionCallback):
    """Keeps the results, and saves a checkpoint after a given number of diffusion steps."""

    def __init__(self, at: int, path: Path):
        self.at, self.path, self.done = at, path, 0

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs

    def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
        self.done += 1
        self.steps = steps
        if self.done == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("adaptation", "estimator", "at", "steps"),
    [
        pytest.param(scd, DDS(5), 1, 3, id="scd"),
        pytest.param(ddip, DDS(5), 1, 3, id="ddip"),
        pytest.param(mbir, DiffusionMBIR(0.1, 10.0, iterations=2, cg_iterations=2), 1, 3, id="d3ip_mbir"),
        pytest.param(meta, DDS(5), 1, 6, id="d3ip_meta, first trajectory"),
        pytest.param(meta, DDS(5), 3, 6, id="d3ip_meta, between them"),
        pytest.param(meta, DDS(5), 4, 6, id="d3ip_meta, second trajectory"),
    ],
)
def test_continued_from_the_middle(
    tiny_prior: Path, phantom_volume: Path, tmp_path: Path, adaptation: Any, estimator: Any, at: int, steps: int
) -> None:
    sampler = replace(Sampler.published(), steps=3, start=600)

    def run(keep: Keep, seed: int, **settings: Any) -> Result:
        seed_everything(seed, verbose=False)
        module = Reconstruction(str(tiny_prior), estimator, adaptation(), sampler, batch_size=4)
        data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000))
        quiet_trainer(keep).test(module, data, verbose=False, **settings)
        return keep.result

    path = tmp_path / "last.ckpt"
    whole = run(Keep(at, path), 0)
    keep = Keep(0, path)
    continued = run(keep, 0, ckpt_path=path)
    assert (keep.done, keep.steps) == (steps - at, steps)
    assert torch.equal(continued.images, whole.images)
    assert len(continued.trajectory) == len(whole.trajectory) == steps
    assert sum("loss_after" in row for row in whole.trajectory) == steps * 2 // 3  # t = 0 is beyond the horizon
    weights, expected = continued.weights.tensors, whole.weights.tensors
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert any(value.any() for name, value in expected.items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["scd", "ddip", "d3ip", "d3ip_mbir", "d3ip_meta"])
def test_settings_of_the_methods_can_be_used(name: str) -> None:
    method: Any = load_method(name)
    adaptation = method.adaptation
    slicewise = isinstance(adaptation, SlicewiseAdaptation | MetaAdaptation)
    assert slicewise == (name in ("scd", "ddip", "d3ip_meta"))
    assert method.sampler.planes == ("slices" if slicewise else "all")
    for part in [adaptation.volume, adaptation.slices] if name == "d3ip_meta" else [adaptation]:
        assert (part.training.learning_rate, part.training.rank) == (1e-3, 4)
        assert (part.training.horizon, part.training.discrepancy) == (5, 1.0)
        assert (part.training.loss_estimator is not None) == (name == "scd")
