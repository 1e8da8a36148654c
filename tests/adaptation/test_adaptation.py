"""Slicewise, volume and meta adaptation: what they train, that slices at once are slices one by one, what they save."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CONFIGS, make_network
from jsonargparse import ArgumentParser
from lightning import seed_everything
from peft import PeftModel
from torch import Tensor, nn

from ddip_pl.adaptation import Adaptation, MetaAdaptation, SlicewiseAdaptation, VolumeAdaptation
from ddip_pl.adaptation.adaptation import Figures
from ddip_pl.adaptation.lora import LoRA, load, save
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DiffusionMBIR, Estimate
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior import unet
from ddip_pl.prior.denoiser import ROWS, Denoiser
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import Reconstruction, Result

SIZE, SLICES = 16, 5


def make_denoiser(batch_size: int = 8, **settings: Any) -> Denoiser:
    return Denoiser(make_network(**settings), batch_size).requires_grad_(False)


def images(slices: int = SLICES, seed: int = 0) -> Tensor:
    return torch.rand(slices, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def measure(slices: int = SLICES, sigma_y: float = 0.0) -> Measurement:
    operator = ParallelBeamCT(SIZE, angles=8)
    return Measurement(operator(images(slices)), operator, sigma_y, "test")


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
    denoiser.weights, denoiser.slicewise = own.split(vectors), True
    eps = denoiser(x, 300)[1]
    eps.square().sum().backward()
    assert vectors.grad is not None
    for i in range(3):
        assert alike(eps[i : i + 1], one_by_one[i], 1e-5)
        assert not alike(eps[i : i + 1], before[i : i + 1], 1e-2)
        assert alike(vectors.grad[i], gradients[i], 1e-4)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in float64. AdamW divides a gradient by its size, so that of one that is nothing but rounding (of a bias that
    normalisation takes off again, say) float32 makes a step in any direction."""
    embedding = unet.timestep_embedding
    monkeypatch.setattr(unet, "timestep_embedding", lambda t, channels: embedding(t, channels).double())


def adapted(
    batch_size: int, slices: slice = slice(None), sigma_y: float = 0.0, **settings: Any
) -> tuple[Tensor, Tensor]:
    """What six gradient steps at two timesteps add to the slices' weights, and the last losses."""
    measurement = measure(sigma_y=sigma_y).to(torch.float64)[slices]
    adaptation = SlicewiseAdaptation(**({"steps": 3, "horizon": 0} | settings))
    start(adaptation, make_denoiser(batch_size).double(), measurement)
    first = adaptation.average.clone()
    for t in (200, 100):
        adaptation.adapt(DDS(2), images(seed=t)[slices].double(), t)
    chosen = torch.arange(len(measurement))
    denoiser = adaptation.denoiser
    denoiser.batch_size = SLICES
    with torch.no_grad():
        losses = adaptation.losses(DDS(2), images(seed=200)[slices].double(), 200, chosen)
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
    _, losses = adapted(SLICES, learning_rate=1e-30)  # of the prior as it is, at the first timestep
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
    adaptation = start(SlicewiseAdaptation(steps=2, learning_rate=1e-2), denoiser, measure())
    before = denoiser(images(), 100)[1]
    adaptation.adapt(DDS(2), images(), 100)
    at_once = denoiser(images(), 100)[1]
    assert not any(alike(a, b, 1e-3) for a, b in zip(at_once, before, strict=True))
    denoiser.batch_size = 2
    assert alike(denoiser(images(), 100)[1], at_once, 1e-5)
    with denoiser.only(slice(3, 5)):
        assert alike(denoiser(images()[3:5], 100)[1], at_once[3:5], 1e-5)
    with pytest.raises(AssertionError):
        denoiser(images()[3:5], 100)
    with pytest.raises(AssertionError), denoiser.across(ROWS):
        denoiser(images(), 100)


def test_network_is_left_as_it_was_found() -> None:
    denoiser = make_denoiser()
    modules = [type(module) for module in denoiser.modules()]
    before = denoiser(images(), 100)[1]
    adaptation = start(SlicewiseAdaptation(steps=1), denoiser, measure())
    adaptation.adapt(DDS(2), images(), 100)
    adaptation.finish()
    assert [type(module) for module in denoiser.modules()] == modules
    assert torch.equal(denoiser(images(), 100)[1], before)
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_memory_of_a_gradient_step_is_that_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    losses = SlicewiseAdaptation.losses

    def spy(self: Any, estimator: Any, x_t: Tensor, t: int, chosen: Tensor) -> Tensor:
        sizes.append(len(chosen))
        return losses(self, estimator, x_t, t, chosen)

    monkeypatch.setattr(SlicewiseAdaptation, "losses", spy)
    start(SlicewiseAdaptation(steps=3), make_denoiser(2), measure()).adapt(DDS(2), images(), 100)
    assert sizes == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_sampling_uses_the_running_average_of_each_slice() -> None:
    first = start(SlicewiseAdaptation(), make_denoiser(), measure()).average
    adaptation = start(SlicewiseAdaptation(steps=1, horizon=0, ema=0.75), make_denoiser(), measure())
    average = first
    for t in (200, 100):
        adaptation.adapt(DDS(2), images(), t)
        latest = torch.stack([theta.detach() for theta in adaptation.theta])
        average = 0.75 * average + 0.25 * latest
        assert torch.allclose(adaptation.average, average, atol=1e-7)
        assert alike(torch.cat([w.flatten(1) for w in adaptation.denoiser.weights.values()], 1), average, 1e-6)
    assert not alike(latest - first, average - first, 0.1)


# --- loss and slices ------------------------------------------------------------------------------------------


class Spy(DDS):
    """Notes whether it was called for the loss, and with how many slices."""

    def __init__(self, iterations: int):
        super().__init__(iterations)
        self.calls: list[tuple[bool, int]] = []

    def __call__(self, denoiser: Any, x_t: Tensor, t: int, measurement: Any, memory: Any = None) -> Estimate:
        self.calls.append((torch.is_grad_enabled(), len(x_t)))
        return super().__call__(denoiser, x_t, t, measurement, memory)


@pytest.mark.parametrize("kind", [partial(VolumeAdaptation, slices=3), SlicewiseAdaptation])
def test_loss_takes_the_estimator_of_sampling_or_another(kind: Any) -> None:
    sampling, loss = Spy(2), Spy(1)
    start(kind(steps=1), make_denoiser(), measure()).adapt(sampling, images(), 100)
    assert len(sampling.calls) == 1
    start(kind(steps=1, loss_estimator=loss), make_denoiser(), measure()).adapt(sampling, images(), 100)
    assert len(sampling.calls) == len(loss.calls) == 1


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


# --- meta -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VolumeAdaptation, SlicewiseAdaptation])
def test_tells_of_every_gradient_step_and_of_the_losses_at_both_ends(kind: type) -> None:
    torch.manual_seed(0)
    told: list[tuple[int, int]] = []
    settings = {"slices": 3} if kind is VolumeAdaptation else {}
    adaptation = start(kind(steps=4, learning_rate=1e-2, **settings), make_denoiser(2), measure())
    adaptation.on_gradient_step = lambda done, steps: told.append((done, steps))
    figures = adaptation.adapt(DDS(2), images(), 100)
    batches = 1 if kind is VolumeAdaptation else len(torch.arange(SLICES).split(2))
    steps = 4 * batches
    assert told == [(done, steps) for done in range(1, steps + 1)]
    assert 0 < figures["loss_after"] < figures["loss_before"]
    assert figures["lora_norm"] > 0


class OneFurther(VolumeAdaptation):
    """Moves all weights by one at every timestep."""

    def adapt(self, estimator: Any, x_t: Tensor, t: int) -> Figures:
        if t > 900:
            return {}
        self.latest = self.average = {name: value + 1 for name, value in self.latest.items()}
        self.use_average()
        return {"loss_after": 0.0}


def test_reptile_goes_part_of_the_way_and_slices_start_there() -> None:
    denoiser = make_denoiser()
    before = denoiser(images(), 100)[1]
    meta = start(MetaAdaptation(OneFurther(slices=2), SlicewiseAdaptation(steps=1)), denoiser, measure())
    first = meta.volume.lora.flat()
    alphas = {950: 0.0, 800: 0.5 + 0.5 * 800 / 950, 475: 0.75, 0: 0.5}
    reached = first
    for t, alpha in alphas.items():
        assert bool(meta.adapt(DDS(2), images(), t)) == (t != 950)
        reached = reached + alpha
        assert torch.allclose(meta.volume.lora.flat(), reached, atol=1e-4)
    meta.next_trajectory()
    assert torch.allclose(meta.slices.average, reached.expand(SLICES, -1), atol=1e-4)
    assert meta.adapt(DDS(2), images(), 100)
    assert not alike(meta.slices.average, reached.expand(SLICES, -1), 1e-6)
    assert meta.trajectories == 2
    assert {name.split("/")[0] for name in meta.finish()} == {f"{i:04d}" for i in range(SLICES)}
    assert torch.equal(denoiser(images(), 100)[1], before)


# --- files ----------------------------------------------------------------------------------------------------


def trained(adaptation: Any, denoiser: Denoiser) -> Tensor:
    """What the denoiser sees after some training."""
    start(adaptation, denoiser, measure())
    adaptation.adapt(DDS(2), images(), 100)
    return denoiser(images(), 100)[1]


@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_a_volume_are_loaded_by_peft(tmp_path: Path, bias: bool) -> None:
    denoiser = make_denoiser()
    volume = VolumeAdaptation(slices=2, steps=2, learning_rate=1e-2, bias=bias)
    eps = trained(volume, denoiser)
    weights = volume.finish()
    assert any(name.endswith("bias") and value.any() for name, value in weights.items()) == bias
    save(weights, tmp_path / "lora")
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    model: nn.Module = PeftModel.from_pretrained(make_network(), tmp_path / "lora")
    found = model(images(), torch.full((SLICES,), 100))
    assert alike(found, eps, 1e-5)
    assert not alike(found, make_network()(images(), torch.full((SLICES,), 100)), 1e-3)


def test_weights_come_back_to_start_from(tmp_path: Path) -> None:
    volume, slicewise = (
        kind(steps=2, learning_rate=1e-2) for kind in (partial(VolumeAdaptation, 2), SlicewiseAdaptation)
    )
    for name, adaptation in (("volume", volume), ("slices", slicewise)):
        eps = trained(adaptation, make_denoiser())
        save(adaptation.finish(), tmp_path / name)
        again = make_denoiser()
        start(type(adaptation)(start_from=str(tmp_path / name), **({"slices": 2} if name == "volume" else {})),
              again, measure())  # fmt: skip
        assert alike(again(images(), 100)[1], eps, 1e-5)
    assert sorted(path.name for path in (tmp_path / "slices").iterdir()) == [f"{i:04d}" for i in range(SLICES)]
    assert load(tmp_path / "volume")[0].keys() == load(tmp_path / "slices")[3].keys()
    # The slices may start from the volume's weights; a volume has no use for those of slices.
    from_volume = start(SlicewiseAdaptation(start_from=str(tmp_path / "volume")), make_denoiser(), measure())
    assert torch.equal(from_volume.average[0], from_volume.average[4])
    with pytest.raises(InputError, match="weights for each of 5 slices; give those of a volume"):
        start(VolumeAdaptation(2, start_from=str(tmp_path / "slices")), make_denoiser(), measure())
    with pytest.raises(InputError, match="each of 5 slices, the volume has 4"):
        start(SlicewiseAdaptation(start_from=str(tmp_path / "slices")), make_denoiser(), measure(4))


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    volume = start(VolumeAdaptation(slices=2), make_denoiser(), measure())
    save(volume.finish(), folder)
    return folder


def test_files_that_cannot_be_used_are_refused(weights_folder: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as error:
            VolumeAdaptation(start_from=str(tmp_path))
        return str(error.value)

    assert "no adapter_config.json" in refusal()
    settings = tmp_path / "adapter_config.json"
    settings.write_text("{")
    assert "cannot be read" in refusal()
    good = (weights_folder / "adapter_config.json").read_text()
    settings.write_text(good)
    assert "cannot be read" in refusal()  # there are no weights
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes((weights_folder / weights.name).read_bytes()[:5000])
    assert "cannot be read" in refusal()
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
    adaptation = SlicewiseAdaptation(start_from=str(weights_folder), **other)
    with pytest.raises(InputError, match="LoRA weights do not fit"):
        adaptation.start(denoiser, measure())
    assert [type(module) for module in denoiser.modules()] == modules


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VolumeAdaptation(slices=0), "slices of the adaptation is 0"),
        (lambda: SlicewiseAdaptation(steps=0), "steps of the adaptation is 0"),
        (lambda: SlicewiseAdaptation(horizon=500), "horizon of the adaptation is 500"),
        (lambda: MetaAdaptation(VolumeAdaptation(rank=2)), "rank and bias are 2, True for the volume and 4, True"),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_slices_that_start_elsewhere_are_refused_by_meta(weights_folder: Path) -> None:
    with pytest.raises(InputError, match=r"give volume\.start_from"):
        MetaAdaptation(slices=SlicewiseAdaptation(start_from=str(weights_folder)))


# --- whole runs -----------------------------------------------------------------------------------------------


def scd() -> Adaptation:
    return SlicewiseAdaptation(steps=2, loss_estimator=DDS(1))


def ddip() -> Adaptation:
    return SlicewiseAdaptation(steps=2, ema=0.5, discrepancy=1.0)


def mbir() -> Adaptation:
    return VolumeAdaptation(slices=3, neighbours=True, steps=2)


def meta() -> Adaptation:
    return MetaAdaptation(VolumeAdaptation(slices=2, steps=1), SlicewiseAdaptation(steps=1))


class Keep(ReconstructionCallback):
    """Keeps the results, and saves a checkpoint after a given number of diffusion steps."""

    def __init__(self, at: int, path: Path):
        self.at, self.path, self.done = at, path, 0

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs

    def on_diffusion_step_end(self, trainer: Any, step: int, steps: int, row: dict[str, float], images: Any) -> None:
        self.done += 1
        self.steps = steps
        if self.done == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("adaptation", "estimator", "at", "steps"),
    [
        pytest.param(scd, DDS, 1, 3, id="scd"),
        pytest.param(ddip, DDS, 1, 3, id="ddip"),
        pytest.param(mbir, partial(DiffusionMBIR, iterations=2, cg_iterations=2), 1, 3, id="d3ip_mbir"),
        pytest.param(meta, DDS, 1, 6, id="d3ip_meta, first trajectory"),
        pytest.param(meta, DDS, 3, 6, id="d3ip_meta, between them"),
        pytest.param(meta, DDS, 4, 6, id="d3ip_meta, second trajectory"),
    ],
)
def test_continued_from_the_middle(
    tiny_prior: Path, phantom_volume: Path, tmp_path: Path, adaptation: Any, estimator: Any, at: int, steps: int
) -> None:
    def run(keep: Keep, seed: int, **settings: Any) -> Result:
        seed_everything(seed, verbose=False)
        module = Reconstruction(str(tiny_prior), estimator(), adaptation(), steps=3, start=600, batch_size=4)
        data = VolumeDataModule(str(phantom_volume), partial(ParallelBeamCT, angles=12), 2e-4, window=(-1000, 1000))
        trainer = ReconstructionTrainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[keep],
            enable_model_summary=False,
        )  # fmt: skip
        trainer.test(module, data, verbose=False, **settings)
        return keep.result

    path = tmp_path / "last.ckpt"
    whole = run(Keep(at, path), 0)
    keep = Keep(0, path)
    continued = run(keep, 0, ckpt_path=path)
    assert (keep.done, keep.steps) == (steps - at, steps)
    assert torch.equal(continued.images, whole.images)
    assert len(continued.trajectory) == len(whole.trajectory) == steps
    assert sum("loss_after" in row for row in whole.trajectory) == steps * 2 // 3  # t = 0 is beyond the horizon
    assert continued.weights.keys() == whole.weights.keys()
    assert all(torch.equal(continued.weights[name], value) for name, value in whole.weights.items())
    assert any(value.any() for name, value in whole.weights.items() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["scd", "ddip", "d3ip", "d3ip_mbir", "d3ip_meta"])
def test_settings_of_the_methods_can_be_used(name: str) -> None:
    parser = ArgumentParser(parser_mode="omegaconf")
    parser.add_argument("--method")
    parser.add_class_arguments(Reconstruction, "model")
    path = CONFIGS / "method" / f"{name}.yaml"
    settings = parser.parse_path(path)
    assert settings.method == name
    module = parser.instantiate_classes(settings).model
    adaptation = module.adaptation
    assert adaptation.slicewise == (name in ("scd", "ddip", "d3ip_meta"))
    assert module.planes == ("slices" if adaptation.slicewise else "all")
    parts = [adaptation.volume, adaptation.slices] if name == "d3ip_meta" else [adaptation]
    for part in parts:
        assert (part.learning_rate, part.rank, part.horizon, part.discrepancy) == (1e-3, 4, 5, 1.0)
        assert (part.loss_estimator is not None) == (name == "scd")
