"""Reverse diffusion as a plain object: what it computes, how it adapts, and that any of its states can be resumed."""

import ast
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bias_adaptation import BiasAdaptation
from einops import rearrange
from helpers import ROOT, make_network
from torch import Tensor

from ddip_pl.adaptation import (
    Adaptation,
    LoraTraining,
    MetaAdaptation,
    NoAdaptation,
    SelfTraining,
    SlicewiseAdaptation,
    VolumeAdaptation,
)  # fmt: skip
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DPS, DiffusionMBIR, Estimate, Memory, PosteriorMean
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.denoiser import AXES, Denoiser
from ddip_pl.prior.schedule import ddim_step, noise_schedule, slerp, tweedie
from ddip_pl.prior.unet import UNet
from ddip_pl.reconstruction import ReverseDiffusion, Sampler, Step


def measured(path: Path) -> Measurement:
    torch.manual_seed(0)  # the noise of the measurement
    data = VolumeDataModule(str(path), partial(ParallelBeamCT, angles=12), sigma_y=2e-4, window=(-1000, 1000))
    return data.simulate(32).measurement


@pytest.fixture(scope="module")
def six(phantom_volume: Path) -> Measurement:
    """Six slices of 32 x 32 pixels."""
    return measured(phantom_volume)


@pytest.fixture(scope="module")
def eight(thick_volume: Path) -> Measurement:
    """Eight slices, enough to use all planes."""
    return measured(thick_volume)


def published(**changes: Any) -> Sampler:
    """The paper's settings with six steps, except for these."""
    return replace(Sampler.published(), **({"steps": 6} | changes))


def d3ip(slices: int = 2, **changes: Any) -> VolumeAdaptation:
    return VolumeAdaptation(slices, training=replace(LoraTraining.published(), **({"steps": 2} | changes)))


def begin(
    measurement: Measurement, adaptation: Adaptation | None = None, estimator: PosteriorMean | None = None,
    batch_size: int = 4, seed: int = 0, **changes: Any,
) -> ReverseDiffusion:  # fmt: skip
    denoiser = Denoiser(make_network(), batch_size).requires_grad_(False)
    torch.manual_seed(seed)
    return ReverseDiffusion(
        measurement, denoiser, estimator or DDS(5, gamma="infinite"), adaptation or NoAdaptation(), published(**changes)
    )


def run(measurement: Measurement, *arguments: Any, **settings: Any) -> list[Step]:
    return list(begin(measurement, *arguments, **settings).iterate())


def images(measurement: Measurement, *arguments: Any, **settings: Any) -> Tensor:
    return run(measurement, *arguments, **settings)[-1].images["estimate"]


# --- what it computes -----------------------------------------------------------------------------------------


def test_it_is_the_papers_algorithm(six: Measurement) -> None:
    """The same volume from a short script, for all slices at once, without adaptation."""
    found = run(six, steps=5, start=980, batch_size=100)
    network = make_network().requires_grad_(False)
    abar = torch.cat([noise_schedule(), torch.ones(1)])
    torch.manual_seed(0)
    guess = six.operator.pseudo_inverse(six.y)
    first, last = torch.randn(2, *guess.shape[1:])
    ts = [980, 735, 490, 245, 0, -1]
    x = abar[ts[0]].sqrt() * guess + (1 - abar[ts[0]]).sqrt() * slerp(first, last, len(guess))
    for step, (t, t_next) in zip(found, itertools.pairwise(ts), strict=True):
        eps = network(x, torch.full((len(x),), t))
        x0_hat = tweedie(x, eps, abar[t])
        mean, _ = DDS(5, gamma="infinite").condition(x0_hat, six, {}, 0.1)
        x = ddim_step(mean, eps, torch.randn(x.shape), abar[t_next], 0.85) if t_next > 0 else mean
        assert torch.allclose(step.images["x0_hat"], x0_hat, atol=1e-5 * float(x0_hat.abs().max()))
        assert torch.allclose(step.images["estimate"], mean, atol=1e-5)
    assert torch.allclose(found[-1].images["estimate"], x, atol=1e-5)


def test_same_seed_same_volume(six: Measurement) -> None:
    first, second, other = (images(six, d3ip(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-3)


def test_horizon_limits_adaptation(six: Measurement) -> None:
    steps = run(six, d3ip(steps=1, horizon=300), steps=11, start=1000 - 10)
    adapted = [step.figures["t"] for step in steps if "loss_after" in step.figures]
    assert adapted == [t for t in range(990, -1, -99) if 300 <= t <= 700]


@pytest.mark.parametrize("make", [d3ip, lambda **changes: slicewise(**changes)], ids=["volume", "slicewise"])
def test_the_optimiser_starts_anew_at_every_timestep(six: Measurement, make: Callable[..., Adaptation]) -> None:
    """The first step of a new AdamW moves every weight by the learning rate, whatever the size of its gradient."""
    diffusion = begin(six, make(steps=1, learning_rate=1e-3), steps=4, start=700)
    states = []
    for _ in diffusion.iterate():
        latest = diffusion.state_dict()["adaptation"]["latest"]
        weights = latest if isinstance(latest, Tensor) else torch.cat([latest[name].flatten() for name in latest])
        states.append(weights)
    for before, after in itertools.pairwise(states[:3]):
        assert (after - before).abs().median() == pytest.approx(1e-3, rel=0.02)


def test_loss_uses_the_estimator_of_sampling(six: Measurement) -> None:
    calls: list[tuple[int, bool, Memory | None]] = []

    class Spy(DDS):
        def __call__(self, denoiser: Any, x_t: Tensor, t: int, measurement: Any, memory: Any = None) -> Estimate:
            calls.append((len(x_t), torch.is_grad_enabled(), memory))
            mean, eps, _ = super().__call__(denoiser, x_t, t, measurement, memory)
            return Estimate(mean, eps, {"seen": torch.tensor(len(calls))})

    run(six, d3ip(), estimator=Spy(5, gamma="infinite"), steps=2, start=700)
    assert calls[:4] == [(2, True, None), (2, True, None), (2, False, None), (6, False, {})]
    assert calls[-1] == (6, False, {"seen": torch.tensor(4)})  # from the previous step, not from the loss in between


def test_adaptation_and_coupled_slices_go_together(six: Measurement) -> None:
    diffusion = begin(six, d3ip(), DiffusionMBIR(0.1, 10.0, cg_iterations=2, iterations=2), steps=3, start=500)
    steps = list(diffusion.iterate())
    assert steps[-1].images["estimate"].isfinite().all()
    assert sum("loss_after" in step.figures for step in steps) == 2
    assert any(value.abs().max() > 0 for name, value in diffusion.weights.tensors.items() if "lora_B" in name)


class Scripted(PosteriorMean):
    """Returns known means and noise; keeps the `x_t` that it receives."""

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

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        raise NotImplementedError


@pytest.mark.parametrize("averaging", [0.0, 0.5, 0.9])
def test_every_step_goes_on_from_the_running_average(six: Measurement, averaging: float) -> None:
    estimator = Scripted()
    steps = run(six, estimator=estimator, averaging=averaging, eta=0.0, steps=4, start=300)
    average = estimator.means[0]
    averages = [average := averaging * average + (1 - averaging) * mean for mean in estimator.means]
    abar = noise_schedule()
    for i in range(3):
        t, x = estimator.seen[i + 1]
        share = abar[t] if t > 0 else torch.ones(())  # the published code continues from the mean at t = 0
        assert torch.allclose(x, share.sqrt() * averages[i] + (1 - share).sqrt() * estimator.noises[i], atol=1e-5)
    assert torch.allclose(steps[-1].images["estimate"], averages[3], atol=1e-6)
    residuals = [float(six.residual(mean).norm() / six.y.norm()) for mean in averages]
    assert [step.figures["residual"] for step in steps] == pytest.approx(residuals, rel=1e-4)


@pytest.mark.parametrize(
    ("noise_above", "noisy"),
    [(-1, [800, 450, 200, 50, 0]), (0, [800, 450, 200, 50]), (50, [800, 450, 200]), (999, [800])],
)
def test_no_noise_on_the_way_to_the_last_timesteps(six: Measurement, noise_above: int, noisy: list[int]) -> None:
    estimator = Scripted()
    run(six, estimator=estimator, steps=5, start=800, spacing=2.0, noise_above=noise_above)
    assert [t for t, _ in estimator.seen] == [800, 450, 200, 50, 0]
    abar = noise_schedule()
    for (t, x), mean in zip(estimator.seen[1:], estimator.means, strict=False):
        assert torch.allclose(x, (abar[t].sqrt() if t else 1) * mean) == (t not in noisy)


def test_no_steps_far_below_the_noise_of_the_data(six: Measurement) -> None:
    sigma = ((1 - noise_schedule()) / noise_schedule()).sqrt().tolist()

    def left(share: float, **changes: Any) -> list[int]:
        """Timesteps if the noise in the image is this share of that of timestep 3."""
        noisy = replace(six, sigma_y=share * sigma[3] * six.operator.gain)
        return Sampler(steps=7, start=6, spacing=1.0, floor=0.5, **changes).timesteps_for(noisy, sigma)

    assert left(0) == left(2 * 0.4) == [6, 5, 4, 3, 2, 1, 0]
    assert left(2 * 0.999) == [6, 5, 4, 3]
    assert left(2 * 1.001) == [6, 5, 4]
    assert left(1000) == [6, 5]  # half of the 10 timesteps without fresh noise stay
    assert left(1000, noise_above=0) == left(1000, noise_above=-1) == left(0)
    assert left(1000, noise_above=999) == [6]


def test_published_without_averaging_and_with_even_spacing(six: Measurement) -> None:
    plain = images(six, steps=3)
    assert torch.equal(images(six, steps=3, averaging=0.0, spacing=1.0), plain)
    assert not torch.allclose(images(six, steps=3, averaging=0.5), plain, atol=1e-4)


def test_published_settings() -> None:
    assert Sampler.published() == Sampler(50, 980, 1.0, 0.85, "interpolated", "slices", 0.0, 0, 0.0)


def test_planes_take_turns_in_sampling_and_slices_are_adapted(eight: Measurement) -> None:
    shapes: list[tuple[bool, torch.Size]] = []

    class Spy(DDS):
        def __call__(self, denoiser: Any, x_t: Any, *arguments: Any, **named: Any) -> Any:
            cut: Tensor = rearrange(x_t, f"s c h w -> {AXES[denoiser.plane]}")
            shapes.append((torch.is_grad_enabled(), cut.shape))
            return super().__call__(denoiser, x_t, *arguments, **named)

    found = images(eight, d3ip(steps=1), estimator=Spy(5, gamma="infinite"), steps=4, start=500, planes="all")
    height, width = found.shape[2:]
    sampled = [(8, 1, height, width), (height, 1, 8, width), (width, 1, height, 8), (8, 1, height, width)]
    assert [shape for adapting, shape in shapes if not adapting and shape[0] > 2] == sampled
    assert {shape for adapting, shape in shapes if adapting} == {(2, 1, height, width)}


def test_few_slices_are_not_cut_across(six: Measurement) -> None:
    assert torch.equal(images(six, steps=2, planes="slices"), images(six, steps=2, planes="all"))


def test_spacing_puts_more_of_the_steps_at_the_end(six: Measurement) -> None:
    estimator = Scripted()
    steps = run(six, estimator=estimator, steps=5, start=800, spacing=2.0)
    assert [step.figures["t"] for step in steps] == [800, 450, 200, 50, 0]
    assert [t for t, _ in estimator.seen] == [800, 450, 200, 50, 0]


def test_estimator_is_given_its_memory_back(six: Measurement) -> None:
    given: list[Memory] = []
    returned: list[Memory] = []

    class Spy(DiffusionMBIR):
        def condition(
            self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
        ) -> tuple[Tensor, Memory]:
            mean, after = super().condition(x0_hat, measurement, memory, sigma_t)
            given.append(memory)
            returned.append(after)
            return mean, after

    run(six, estimator=Spy(), steps=3)
    assert given[0] == {}
    assert all(before["d"] is after["d"] for before, after in zip(returned[:2], given[1:], strict=True))


def test_figures_of_every_step_and_an_end_near_the_data(six: Measurement) -> None:
    diffusion = begin(six, estimator=DDS(20, gamma="infinite"))
    steps = list(diffusion.iterate())
    assert len(steps) == diffusion.steps == diffusion.step == 6
    assert [step.figures["t"] for step in steps] == [980, 784, 588, 392, 196, 0]
    residuals = [step.figures["residual"] for step in steps]
    assert residuals[-1] < 0.5 * residuals[0]
    residual = (six.operator(steps[-1].images["estimate"]) - six.y).norm() / six.y.norm()
    assert residuals[-1] == pytest.approx(float(residual), rel=1e-4)


@pytest.mark.parametrize("initial_noise", ["interpolated", "independent"])
def test_noise_of_neighbouring_slices_in_the_beginning(eight: Measurement, initial_noise: str) -> None:
    estimator = Scripted()
    run(eight, estimator=estimator, steps=2, start=999, initial_noise=initial_noise)
    abar = noise_schedule()[999]
    guess = eight.operator.pseudo_inverse(eight.y)
    noise = (estimator.seen[0][1] - abar.sqrt() * guess) / (1 - abar).sqrt()
    alike = torch.corrcoef(noise.flatten(1))
    assert noise.std() == pytest.approx(1, abs=0.05)
    neighbours, ends = float(alike.diagonal(1).mean()), float(alike[0, -1])
    assert abs(ends) < 0.15
    assert neighbours > 0.9 if initial_noise == "interpolated" else abs(neighbours) < 0.15


# --- what it costs --------------------------------------------------------------------------------------------


def test_network_never_sees_more_than_a_batch(six: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network needs most of the memory of a step, and that does not grow with the number of slices."""
    sizes: list[int] = []
    forward = UNet.forward

    def spy(network: UNet, x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(network, x, t)

    monkeypatch.setattr(UNet, "forward", spy)
    run(six, batch_size=4, steps=2)
    assert sizes == [4, 2] * 2
    sizes.clear()
    run(six, d3ip(slices=3), batch_size=2, steps=2, start=500)
    assert max(sizes) == 2


@pytest.mark.parametrize(
    "settings", [{}, {"estimator": DiffusionMBIR(0.1, 10.0), "averaging": 0.5, "spacing": 2.0}], ids=["dds", "mbir"]
)
def test_batch_size_changes_nothing_but_rounding(six: Measurement, settings: dict[str, Any]) -> None:
    one, all_at_once = (images(six, batch_size=size, steps=3, **settings) for size in (1, 100))
    assert (one - all_at_once).norm() < 1e-4 * all_at_once.norm()


def test_nothing_keeps_a_graph_of_gradients(six: Measurement) -> None:
    """Adaptation leaves weights that require gradients; the caller need not switch gradients off."""
    diffusion = begin(six, BiasAdaptation(2), steps=2, start=500)
    for step in diffusion.iterate():
        assert not any(image.requires_grad for image in step.images.values())
        assert not diffusion.x.requires_grad


# --- that it goes on ------------------------------------------------------------------------------------------


def slicewise(**changes: Any) -> SlicewiseAdaptation:
    return SlicewiseAdaptation(replace(LoraTraining.published(), **({"steps": 1} | changes)))


# With this rho the split variables are far from converged after a few iterations.
UNSETTLED = partial(DiffusionMBIR, 1e-2, 1e-1, iterations=2, cg_iterations=2)

METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "dds": dict,
    "dps": lambda: {"estimator": DPS()},
    "mbir": lambda: {"estimator": UNSETTLED(), "averaging": 0.5, "spacing": 2.0},
    "bias": lambda: {"adaptation": BiasAdaptation(2)},
    "ddip": lambda: {"adaptation": slicewise(ema=0.5)},
    "d3ip": lambda: {"adaptation": d3ip(ema=0.5), "planes": "all", "averaging": 0.3},
    "d3ip with dropout": lambda: {"adaptation": VolumeAdaptation(2, dropout=0.1, training=LoraTraining(steps=1))},
    "d3ip_mbir": lambda: {"adaptation": d3ip(steps=1), "estimator": UNSETTLED(), "planes": "all"},
    "d3ip_meta": lambda: {"adaptation": MetaAdaptation(d3ip(steps=1), slicewise())},
    "d3ip_em": lambda: {"adaptation": SelfTraining(steps=2, batch=2), "planes": "all", "averaging": 0.3},
}


@pytest.fixture(scope="module")
def small() -> Measurement:
    """Eight slices of 16 x 16 pixels."""
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    operator = ParallelBeamCT((8, 16, 16), angles=6)
    return Measurement(operator(x), operator, 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_goes_on_from_any_of_its_states_bit_for_bit(small: Measurement, name: str) -> None:
    def make(seed: int) -> ReverseDiffusion:
        return begin(small, **({"steps": 3, "start": 400} | METHODS[name]()), seed=seed)

    diffusion, steps, states = make(0), [], []
    for step in diffusion.iterate():
        steps.append(step)
        states.append(diffusion.state_dict())
    assert len(steps) == diffusion.steps
    for done, state in enumerate(states, 1):
        again = make(1)  # with other random numbers
        rest = list(again.iterate(state))
        assert len(rest) == len(steps) - done
        for step, expected in zip(rest, steps[done:], strict=True):
            assert step.figures == expected.figures
            assert all(torch.equal(step.images[key], image) for key, image in expected.images.items())
        assert again.weights.tensors.keys() == diffusion.weights.tensors.keys()
        assert all(torch.equal(again.weights.tensors[key], value) for key, value in diffusion.weights.tensors.items())


def test_a_state_serves_more_than_once(small: Measurement) -> None:
    diffusion = begin(small, d3ip(ema=0.5), steps=3, start=400)
    steps = diffusion.iterate()
    next(steps)
    state = diffusion.state_dict()
    expected = [step.images["estimate"] for step in steps]
    for _ in range(2):
        again = [step.images["estimate"] for step in begin(small, d3ip(ema=0.5), steps=3, start=400).iterate(state)]
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_the_state_of_another_run_is_refused(small: Measurement) -> None:
    diffusion = begin(small, steps=3, start=400)
    next(diffusion.iterate())
    state = diffusion.state_dict()
    for other in (begin(small, steps=4, start=400), begin(small[:5], steps=3, start=400)):
        with pytest.raises(InputError, match="the checkpoint is of 1 x 8 slices, 3 steps from 400; give"):
            next(other.iterate(state))


@pytest.mark.parametrize("name", ["ddip", "d3ip", "d3ip_meta"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_abandoned_it_leaves_the_network_as_it_was(small: Measurement, name: str, done: int) -> None:
    diffusion = begin(small, **({"steps": 3, "start": 400} | METHODS[name]()))
    network = diffusion.denoiser.network
    modules = [type(module) for module in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    steps = diffusion.iterate()
    for _ in range(done):
        next(steps)
    assert ([type(module) for module in network.modules()] != modules) == (done > 0)
    steps.close()  # type: ignore[attr-defined]
    assert [type(module) for module in network.modules()] == modules
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_an_error_in_the_middle_leaves_the_network_as_it_was(small: Measurement) -> None:
    class Fails(DDS):
        def __call__(self, *arguments: Any, **named: Any) -> Estimate:
            raise RuntimeError("in the middle")

    diffusion = begin(small, d3ip(), Fails(), steps=3, start=400)
    modules = [type(module) for module in diffusion.denoiser.network.modules()]
    with pytest.raises(RuntimeError, match="in the middle"):
        next(diffusion.iterate())
    assert [type(module) for module in diffusion.denoiser.network.modules()] == modules


# --- what it refuses, and what it knows -----------------------------------------------------------------------


def test_single_slice_cannot_be_coupled(six: Measurement) -> None:
    with pytest.raises(InputError, match=r"given one; give at least 2 slices to the volume \(data\.slices\)"):
        run(six[:1], estimator=DiffusionMBIR(), steps=2)


def test_more_slices_for_a_gradient_step_than_there_are(six: Measurement) -> None:
    with pytest.raises(InputError, match=r"draws 7 slices, the volume has 6"):
        run(six, d3ip(slices=7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"start": 1000}, "start is 1000"),
        ({"steps": 100, "start": 50}, "100 steps from timestep 50"),
        ({"spacing": 0.0}, "spacing is 0.0"),
        ({"spacing": -1.0}, "spacing is -1.0"),
        ({"spacing": float("nan")}, "spacing is nan"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"averaging": 1.0}, "averaging is 1.0"),
        ({"averaging": -0.1}, "averaging is -0.1"),
        ({"averaging": float("nan")}, "averaging is nan"),
        ({"noise_above": -2}, "noise_above is -2"),
        ({"noise_above": 1000}, "noise_above is 1000"),
        ({"planes": "rows"}, "planes is 'rows'; give slices or all"),
        ({"initial_noise": "none"}, "initial_noise is 'none'; give interpolated or independent"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Sampler(**settings)
    assert "\n" not in str(caught.value)


def imported(module: str) -> set[str]:
    """All modules that a module imports, and all modules that its imports from the package import."""
    names, queue = set[str](), [module]
    while queue:
        path = ROOT / (queue.pop().replace(".", "/") + ".py")
        for node in ast.walk(ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            queue += [name for name in found if name.startswith("ddip_pl.") and name not in names]
            names |= set(found)
    return names


def test_it_knows_nothing_of_lightning_files_evaluation_or_results() -> None:
    names = imported("ddip_pl.reconstruction.sampler")
    assert {"torch", "ddip_pl.adaptation.adaptation", "ddip_pl.estimators.estimator", "ddip_pl.solvers.cg"} <= names
    above = (
        "baselines", "callbacks", "cli", "data", "evaluation", "report", "results", "scans", "volumes",
        "reconstruction.method", "reconstruction.loop",
    )  # fmt: skip
    forbidden = ("lightning", "nibabel", "wandb", *(f"ddip_pl.{room}" for room in above))
    assert [name for name in sorted(names) if name.startswith(forbidden)] == []


def test_it_begins_anew_without_a_state(six: Measurement) -> None:
    """Also when it was abandoned after a step."""
    diffusion = begin(six, steps=3)
    next(diffusion.iterate())
    first, second = ([step.images["estimate"] for step in diffusion.iterate()] for _ in range(2))
    assert len(first) == 3
    assert all(map(torch.equal, first, second))
