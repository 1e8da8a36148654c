"""Training of the prior: it learns, is reproducible, can be resumed, and exports a usable prior."""

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from helpers import make_network
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors import safe_open
from torch import Tensor, nn

from ddip_pl.callbacks.prior import ExportPrior, SampleImages, tile
from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import load_prior, save_prior
from ddip_pl.prior.module import VALIDATION_TIMESTEPS, DiffusionPrior
from ddip_pl.prior.schedule import noise_schedule, tweedie
from ddip_pl.prior.unet import UNetConfig

TINY: dict[str, Any] = {"image_size": 16, "channel_mult": (1,), "attention_resolutions": ()}
EPOCH = 4  # steps


class Repeatable(DiffusionPrior):
    """Training in which timesteps and noise depend only on the step, so that runs can be compared exactly."""

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        return super().training_step(x, batch_idx)


class Alone(DiffusionPrior):
    """Takes training steps without a trainer and keeps what it would log."""

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        self.logged = {name: float(value)}


class Drawn(Alone):
    """Keeps what a training step draws; image i has the loss i + 1."""

    def loss(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        self.t, self.noise = t, noise
        return torch.arange(1.0, len(x) + 1)


class Hasty(DiffusionPrior):
    """Draws samples in few steps."""

    def sample(self, noise: Tensor, steps: int = 5, eta: float = 0.85) -> Tensor:
        return super().sample(noise, steps, eta)


class Guess(nn.Module):
    """A network that predicts a third of its input as noise."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t / 3


class Watch(Callback):
    """Keeps the state at the start, and the number, learning rate and phantoms of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.phantoms: list[Tensor] = []
        self.steps: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = weights(pl_module)
        self.moments = {k: v["exp_avg"].clone() for k, v in trainer.optimizers[0].state_dict()["state"].items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.phantoms.append(batch.clone())
        self.steps.append(trainer.global_step)


def prior(kind: type[DiffusionPrior] = DiffusionPrior, **arguments: Any) -> DiffusionPrior:
    """A module with the same weights every time."""
    torch.manual_seed(0)
    return kind(UNetConfig(**TINY), **{"learning_rate": 2e-3, "warmup_steps": 2} | arguments)


def phantom_data() -> EllipsesDataModule:
    return EllipsesDataModule(image_size=16, batch_size=4, epoch_size=4 * EPOCH, validation_size=6)


def make_trainer(folder: Path, steps: int, *callbacks: Callback, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        accelerator="cpu", max_steps=steps, callbacks=list(callbacks), default_root_dir=folder,
        enable_checkpointing=checkpointing, **quiet | arguments,
    )  # fmt: skip


def weights(module: DiffusionPrior) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def card(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["card"])


# ------------------------------------------------------------------------------------------------------- learning


def test_fit_learns_to_predict_the_noise(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module, data = prior(), EllipsesDataModule(image_size=16, batch_size=8, epoch_size=192, validation_size=8)
    trainer = make_trainer(tmp_path, 24)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]
    assert trainer.global_step == 24
    assert before["val/loss"] == pytest.approx(1, abs=0.05)  # an untrained network predicts no noise at all
    assert after["val/loss"] < 0.6
    assert after["val/loss_t800"] < after["val/loss_t50"]  # the more noise, the easier


def test_loss_is_the_mean_squared_error_of_the_noise_of_each_image() -> None:
    torch.manual_seed(0)
    x, noise = torch.rand(3, 1, 16, 16), torch.randn(3, 1, 16, 16) * torch.tensor([1, 2, 3]).view(3, 1, 1, 1)
    t = torch.tensor([5, 300, 999])
    torch.testing.assert_close(prior().loss(x, t, noise), noise.square().flatten(1).mean(1))

    class Perfect(nn.Module):
        """Knows the clean image."""

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            abar = noise_schedule()[t].view(-1, 1, 1, 1)
            return (x_t - abar.sqrt() * x) / (1 - abar).sqrt()

    module = prior()
    module.network = Perfect()  # type: ignore[assignment]
    assert module.loss(x, t, noise).max() < 1e-6


def test_variance_channels_of_a_network_are_not_trained() -> None:
    module = DiffusionPrior(UNetConfig(**TINY, in_channels=2, learn_sigma=True))
    module.loss(torch.rand(2, 2, 16, 16), torch.tensor([10, 500]), torch.randn(2, 2, 16, 16)).sum().backward()
    gradient = module.network.out[2].weight.grad
    assert gradient[:2].any()
    assert not gradient[2:].any()


@pytest.mark.parametrize("weighting", [0.0, 0.25, 1.0, 2.0])
def test_training_loss_is_weighted_by_the_power_of_noise_over_signal_and_logged_without(weighting: float) -> None:
    module = prior(Drawn, weighting=weighting)
    loss = module.training_step(torch.zeros(6, 1, 2, 2), 0)
    beta = torch.linspace(1e-4, 2e-2, 1000).double()
    abar = [float((1 - beta[: t + 1]).prod()) for t in module.t.tolist()]
    assert len(set(abar)) == 6
    expected = sum(((1 - a) / a) ** weighting * (i + 1) for i, a in enumerate(abar)) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    assert module.logged == {"train/loss": pytest.approx(3.5)}


def test_weight_of_one_counts_the_error_of_the_image() -> None:
    drawn, module = prior(Drawn), prior(Alone, weighting=1.0)
    module.network = Guess()  # type: ignore[assignment]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn.training_step(x, 0)  # the same timesteps and noise: the seed and the step are the same
    abar = noise_schedule()[drawn.t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x + (1 - abar).sqrt() * drawn.noise
    error = tweedie(x_t, Guess()(x_t, drawn.t), abar) - x
    torch.testing.assert_close(module.training_step(x, 0), error.square().mean(), rtol=1e-3, atol=0)


def test_training_step_does_not_weigh_losses_unless_asked_to() -> None:
    assert float(prior(Drawn).training_step(torch.zeros(6, 1, 2, 2), 0)) == pytest.approx(3.5)


@pytest.mark.parametrize("focus", [0.5, 1.0, 2.0, 3.0])
def test_timesteps_are_drawn_as_a_power_of_a_uniform_number(focus: float) -> None:
    count, module = 20_000, prior(Drawn, focus=focus)
    module.training_step(torch.zeros(count, 1, 1, 1), 0)
    t = module.t.numpy()
    assert t.min() >= 0
    assert t.max() <= 999
    assert module.t.dtype == torch.int64
    for quantile in (1, 10, 50, 125, 250, 500, 750, 900, 990):
        share = (quantile / 1000) ** (1 / focus)
        assert (t < quantile).mean() == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / count))
    assert abs(torch.corrcoef(torch.stack([module.t.float(), module.noise.flatten()]))[0, 1]) < 0.03


def test_half_of_the_timesteps_are_below_250_with_focus_2_and_below_500_without() -> None:
    for arguments, median in (({}, 500), ({"focus": 2.0}, 250)):
        module = prior(Drawn, **arguments)
        module.training_step(torch.zeros(20_000, 1, 1, 1), 0)
        assert (module.t < median).float().mean() == pytest.approx(0.5, abs=0.015)


def test_largest_timestep_exists_however_the_power_is_rounded() -> None:
    module = prior(Drawn, focus=1e-4)
    module.training_step(torch.zeros(20_000, 1, 1, 1), 0)
    assert module.t.max() == 999


def test_learning_rate_warms_up_and_falls_to_zero_along_a_cosine(tmp_path: Path) -> None:
    watch = Watch()
    make_trainer(tmp_path, 12, watch, limit_val_batches=0).fit(prior(warmup_steps=4), phantom_data())
    cosine = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert watch.rates[0] == pytest.approx(0.01 * 2e-3)
    assert watch.rates[:5] == sorted(watch.rates[:5])
    assert watch.rates[4:] == pytest.approx([2e-3 * c for c in cosine])


# ------------------------------------------------------------------------------------------------- start elsewhere

CHANGED = {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"}  # layers that depend on the number of channels


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a prior without zero layers."""
    path = tmp_path_factory.mktemp("known") / "known.safetensors"
    save_prior(path, make_network(**TINY), card={}, dtype=torch.float32)
    return path


def test_training_starts_from_the_weights_of_a_prior(known: Path) -> None:
    module, network = prior(prior=str(known)), load_prior(known)
    assert equal(weights(module), network.state_dict())
    assert not equal(weights(module), weights(prior()))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.network.training


def test_prior_of_real_images_is_a_start_for_complex_ones(tmp_path: Path, known: Path) -> None:
    torch.manual_seed(0)
    config = UNetConfig(**TINY, in_channels=2)
    fresh = weights(DiffusionPrior(config))
    torch.manual_seed(0)
    module, before = DiffusionPrior(config, prior=str(known)), load_prior(known).state_dict()
    start = weights(module)
    assert {name for name in start if start[name].shape != before[name].shape} == CHANGED
    assert equal({n: start[n] for n in start if n not in CHANGED}, {n: before[n] for n in before if n not in CHANGED})
    assert equal({name: start[name] for name in CHANGED}, {name: fresh[name] for name in CHANGED})

    data = EllipsesDataModule(image_size=16, channels=2, variant="wide", batch_size=2, epoch_size=4)
    trainer = make_trainer(tmp_path, 2, limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert all(not torch.equal(weights(module)[name], start[name]) for name in ("out.2.weight", "time_embed.0.weight"))


def test_layers_that_the_other_network_lacks_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "deeper.safetensors"
    save_prior(path, make_network(**TINY | {"num_res_blocks": 2}), card={}, dtype=torch.float32)
    module, deeper = prior(prior=str(path)), load_prior(path).state_dict()
    own = weights(module)
    assert deeper.keys() - own.keys()
    shared = [name for name in own if name in deeper and own[name].shape == deeper[name].shape]
    assert len(shared) > len(own) // 2
    assert all(torch.equal(own[name], deeper[name]) for name in shared)


def test_missing_prior_to_start_from_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^prior .*nothing\.safetensors: no such file.*$"):
        prior(prior=str(tmp_path / "nothing.safetensors"))


# ----------------------------------------------------------------------------------------------------- validation


def test_validation_logs_the_loss_at_seven_timesteps_and_their_mean(tmp_path: Path) -> None:
    module = prior()
    module.network = make_network(**TINY)
    logged = make_trainer(tmp_path, 1).validate(module, phantom_data(), verbose=False)[0]
    assert VALIDATION_TIMESTEPS == (20, 50, 100, 200, 400, 600, 800)
    assert set(logged) == {"val/loss", *(f"val/loss_t{t}" for t in VALIDATION_TIMESTEPS)}
    losses = [logged[f"val/loss_t{t}"] for t in VALIDATION_TIMESTEPS]
    assert len(set(losses)) == 7
    assert logged["val/loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_validation_neither_weighs_losses_nor_draws_timesteps(tmp_path: Path) -> None:
    figures = []
    for arguments in ({}, {"weighting": 1.0, "focus": 3.0}):
        module = prior(**arguments)
        module.network = make_network(**TINY)
        figures.append(make_trainer(tmp_path, 1).validate(module, phantom_data(), verbose=False)[0])
    assert figures[0] == figures[1]


def test_validation_gives_the_same_figures_whatever_the_seed(tmp_path: Path) -> None:
    module = prior()
    module.network = make_network(**TINY)
    trainer, figures = make_trainer(tmp_path, 1), []
    for seed in (1, 1, 2):
        seed_everything(seed, verbose=False)
        figures.append(trainer.validate(module, phantom_data(), verbose=False)[0])
    assert figures[0] == figures[1] == figures[2]


def test_validation_and_training_are_logged_to_a_file(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, EPOCH, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.fit(prior(), phantom_data())
    with open(Path(trainer.log_dir or "") / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", *(f"val/loss_t{t}" for t in VALIDATION_TIMESTEPS)):
        assert any(float(row[name]) > 0 for row in rows if row.get(name)), name


# -------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(("channels", "darkest"), [(1, 0), (2, -1)])
def test_samples_lie_in_the_range_of_images_whatever_the_network_says(channels: int, darkest: int) -> None:
    module = DiffusionPrior(UNetConfig(**TINY, in_channels=channels))
    samples = module.sample(torch.randn(2, channels, 16, 16), steps=10)  # an untrained network predicts no noise
    assert samples.min() == darkest
    assert samples.max() == 1


def test_sampling_a_point_distribution_with_its_exact_score_gives_that_point() -> None:
    x = torch.rand(1, 1, 16, 16)

    class Exact(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            abar = noise_schedule()[t.long()].view(-1, 1, 1, 1)
            return (x_t - abar.sqrt() * x) / (1 - abar).sqrt()

    module = prior()
    module.network = Exact()  # type: ignore[assignment]
    torch.testing.assert_close(module.sample(torch.randn(3, 1, 16, 16), steps=5), x.expand(3, -1, -1, -1))


def test_sample_images_are_written_after_each_validation_but_not_after_the_sanity_check(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 2 * EPOCH, SampleImages(count=5), num_sanity_val_steps=1, limit_val_batches=1)
    trainer.fit(prior(Hasty), phantom_data())
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        f"step-{EPOCH:07d}.png",
        f"step-{2 * EPOCH:07d}.png",
    ]
    image = matplotlib.image.imread(tmp_path / "samples" / f"step-{EPOCH:07d}.png")
    assert image.shape[:2] == (2 * 16, 3 * 16)  # five images in two rows of three
    assert image[..., 0].std() > 0.05
    assert not image[16:, 32:, 0].any()  # there is no sixth


def test_sample_images_are_written_every_so_many_epochs(tmp_path: Path) -> None:
    callback = SampleImages(count=1, every_n_epochs=2)
    make_trainer(tmp_path, 3 * EPOCH, callback, limit_val_batches=1).fit(prior(Hasty), phantom_data())
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        f"step-{EPOCH:07d}.png",
        f"step-{3 * EPOCH:07d}.png",
    ]


def test_sample_images_start_from_the_same_noise_and_leave_the_random_state_alone(tmp_path: Path) -> None:
    module, pictures = prior(Hasty), []
    module.network = make_network(**TINY)
    for seed in (1, 2):
        callback, trainer = SampleImages(count=1), make_trainer(tmp_path / str(seed), 1)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        callback.on_validation_epoch_start(trainer, module)
        assert torch.equal(torch.get_rng_state(), state)
        pictures.append((tmp_path / str(seed) / "samples" / "step-0000000.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_tile_sets_images_in_rows_and_complex_ones_by_magnitude() -> None:
    images = torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    tiled = tile(images)
    assert tiled.shape == (4, 9)
    assert tiled[::2, ::3].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert torch.equal(tile(torch.cat([0.6 * images, 0.8 * images], dim=1)), tiled)


# --------------------------------------------------------------------------------------------------------- export


def test_export_writes_a_prior_with_its_card(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prior.safetensors"
    module = prior()
    trainer = make_trainer(tmp_path, EPOCH + 2, ExportPrior(str(path)))
    trainer.fit(module, phantom_data())
    network, written = load_prior(path), card(path)
    for name, value in weights(module).items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-6)  # float16
    assert network.config == UNetConfig(**TINY)
    assert written["steps"] == EPOCH + 2
    assert written["images"] == 4 * (EPOCH + 2)
    assert 0 <= written["seconds"] < 60
    assert written["data"] == {"image_size": 16, "channels": 1, "variant": "uniform", "crop": None, "whole": 0}
    assert set(written["validation_loss"]) == {str(t) for t in VALIDATION_TIMESTEPS}
    for t, loss in written["validation_loss"].items():
        assert loss == pytest.approx(float(trainer.callback_metrics[f"val/loss_t{t}"]))


def test_export_writes_the_averaged_weights_where_they_are_averaged(tmp_path: Path) -> None:
    path, averaging, last = tmp_path / "prior.safetensors", EMAWeightAveraging(decay=0.9), {}

    class Last(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            last.update(weights(pl_module))

    make_trainer(tmp_path, 6, averaging, Last(), ExportPrior(str(path))).fit(prior(), phantom_data())
    exported = load_prior(path).state_dict()
    averaged = averaging._average_model.module.network.state_dict()  # type: ignore[union-attr]
    for name in exported:
        torch.testing.assert_close(exported[name], averaged[name], rtol=1e-3, atol=1e-6)
    assert max(float((exported[name] - last[name]).abs().max()) for name in exported) > 1e-3


# --------------------------------------------------------------------------------------------------------- resume


def resumable(folder: Path, checkpoint: Path | None, kind: type[DiffusionPrior] = Repeatable) -> dict[str, Any]:
    """Train for three epochs, from the start or from a checkpoint, and keep one of every other step."""
    seed_everything(3, verbose=False)
    watch, averaging = Watch(), EMAWeightAveraging(decay=0.9)
    keep = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(
        folder, 3 * EPOCH, averaging, watch, keep, ExportPrior(str(folder / "prior.safetensors")), limit_val_batches=0
    )
    module = prior(kind)
    trainer.fit(module, phantom_data(), ckpt_path=checkpoint)
    return {"module": module, "watch": watch, "trainer": trainer, "folder": folder}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted training."""
    run = resumable(tmp_path_factory.mktemp("whole"), None)
    return run | {"exported": load_prior(run["folder"] / "prior.safetensors").state_dict()}


@pytest.mark.parametrize("step", [2, EPOCH, EPOCH + 2, 2 * EPOCH, 3 * EPOCH])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(
    tmp_path: Path, whole: dict[str, Any], step: int
) -> None:
    """From the end of an epoch, from within one, and after the last step."""
    checkpoint = whole["folder"] / f"step={step}.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*your dataloader is not resumable")
        rest = resumable(tmp_path, checkpoint)
    assert equal(load_prior(tmp_path / "prior.safetensors").state_dict(), whole["exported"])
    assert equal(weights(rest["module"]), weights(whole["module"]))
    assert rest["trainer"].global_step == 3 * EPOCH
    if step == 3 * EPOCH:
        return
    current = {name.removeprefix("network."): value for name, value in content["current_model_state"].items()}
    assert equal(rest["watch"].weights, current)  # the weights in training, not the averaged ones
    moments = content["optimizer_states"][0]["state"]
    assert all(torch.equal(rest["watch"].moments[index], moments[index]["exp_avg"]) for index in moments)
    assert rest["watch"].steps == list(range(step, 3 * EPOCH))
    assert rest["watch"].rates == whole["watch"].rates[step:]
    assert all(map(torch.equal, rest["watch"].phantoms, whole["watch"].phantoms[step:]))


def test_card_of_a_resumed_training_counts_all_of_it(tmp_path: Path, whole: dict[str, Any]) -> None:
    resumable(tmp_path, whole["folder"] / f"step={2 * EPOCH}.ckpt")
    written = card(tmp_path / "prior.safetensors")
    assert written["steps"] == 3 * EPOCH
    assert written["images"] == 4 * 3 * EPOCH


def test_same_seed_gives_the_same_training(tmp_path: Path) -> None:
    first, again = (resumable(tmp_path / name, None, DiffusionPrior) for name in ("first", "again"))
    assert equal(weights(first["module"]), weights(again["module"]))
