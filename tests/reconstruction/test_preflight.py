"""Memory before a run: the estimate beside what the run allocates, and what happens if there is less."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_network, random

from ddip_pl.adaptation import LoraTraining, NoAdaptation, VolumeAdaptation
from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.baselines import Baseline, DirectInverse, L1Wavelet, LocallyLowRank, TotalVariation
from ddip_pl.errors import InputError
from ddip_pl.physics import SENSE, Birdcage, Measurement, ParallelBeamCT, RandomLines
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.prior.footprint import Allocations
from ddip_pl.reconstruction import Reconstruction, Sampler, memory, preflight
from ddip_pl.reconstruction.memory import available_memory
from ddip_pl.reconstruction.preflight import Footprint, footprint

SAMPLER = Sampler(steps=1, start=20, planes="slices")


def ct(slices: int) -> Measurement:
    operator = ParallelBeamCT((slices, 32, 32), angles=20)
    return Measurement(operator(random(slices, 1, 32, 32)), operator, 1e-3)


def coils(slices: int) -> Measurement:
    operator = SENSE((slices, 32, 32), RandomLines(acceleration=2), Birdcage(coils=6))
    return Measurement(operator(random(slices, operator.channels, 32, 32)), operator, 1e-3)


def estimated(method: Reconstruction, measurement: Measurement) -> Footprint:
    return footprint(measurement, method.denoiser, method.adaptation, ("slices",), method.samples)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the memory that is free, in bytes."""
    return lambda size: monkeypatch.setattr(preflight, "available_memory", lambda device: int(size))


@pytest.mark.parametrize(("measure", "channels"), [(ct, 1), (coils, 2)])
@pytest.mark.parametrize(
    "adaptation", [NoAdaptation(), VolumeAdaptation(slices=3, training=LoraTraining(steps=1))], ids=["none", "adapted"]
)
def test_estimate_beside_what_is_allocated(
    tmp_path: Path, measure: Callable[[int], Measurement], channels: int, adaptation: Adaptation
) -> None:
    save_prior(tmp_path / "prior.safetensors", make_network(in_channels=channels), card={})
    method = Reconstruction(str(tmp_path / "prior.safetensors"), None, adaptation, SAMPLER, batch_size=1)
    measurement = measure(30)
    process = method.begin(measurement)
    with Allocations() as allocations:
        list(process.iterate())
    assert 0.5 < estimated(method, measurement).least / allocations.peak < 2


@pytest.mark.parametrize("measure", [ct, coils])
@pytest.mark.parametrize("baseline", [TotalVariation, L1Wavelet, LocallyLowRank, DirectInverse])
def test_estimate_of_baselines(
    measure: Callable[[int], Measurement], baseline: type[Baseline], free: Callable[[float], None]
) -> None:
    measurement = measure(40)
    measurement.operator.pseudo_inverse(measurement.y)
    method = baseline() if baseline is DirectInverse else baseline(0.1, iterations=3)  # type: ignore[call-arg]
    process = method.begin(measurement)
    with Allocations() as allocations:
        list(process.iterate())
    needed = preflight.volumes_of(measurement, method.copies)
    assert 0.4 < allocations.peak / needed < 1.2
    free(0.5 * needed)
    with pytest.raises(InputError, match=r"lower data\.slices to 20, or use"):
        method.begin(measurement)


def test_a_run_that_cannot_fit_is_refused_with_what_would_fit(tiny_prior: Path, free: Callable[[float], None]) -> None:
    method = Reconstruction(str(tiny_prior), sampler=SAMPLER)
    needed = estimated(method, ct(100))
    free(needed.image + 0.55 * needed.volumes)
    with pytest.raises(InputError, match=r"needs about 0.*lower data.slices to 5[45], or use") as error:
        method.begin(ct(100))
    fitting = int(str(error.value).split("data.slices to ")[1].split(",")[0])
    method.begin(ct(fitting))


def test_nothing_fits(tiny_prior: Path, free: Callable[[float], None]) -> None:
    free(1000)
    with pytest.raises(InputError, match=r"lower data\.size, or use a machine with more"):
        Reconstruction(str(tiny_prior), sampler=SAMPLER).begin(ct(10))


def test_short_memory_lowers_the_batch_size(
    tiny_prior: Path, free: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    method = Reconstruction(str(tiny_prior), sampler=SAMPLER)
    needed = estimated(method, ct(10))
    free(needed.volumes + 3.5 * needed.image)
    with caplog.at_level(logging.WARNING):
        method.begin(ct(10))
    assert method.denoiser.batches.size == 3
    assert "3 images at once instead of 8" in caplog.text


def test_enough_memory_changes_nothing(tiny_prior: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = Reconstruction(str(tiny_prior), sampler=SAMPLER)
    method.begin(ct(10))
    assert method.denoiser.batches.size == 8
    assert not caplog.records


def test_network_is_left_as_it_was(tiny_prior: Path) -> None:
    method = Reconstruction(str(tiny_prior), sampler=SAMPLER)
    before, state = [weight.clone() for weight in method.parameters()], torch.get_rng_state()
    estimated(method, ct(10))
    assert all(weight.grad is None and not weight.requires_grad for weight in method.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, method.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 3 GB, 1.5 GB in use, of which 0.5 GB are files that can be dropped; the group around it has none."""
    group = Path("/proc/self/cgroup").read_text().split("::")[1].split("\n")[0].strip("/") or "."
    folder = tmp_path / "fs" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"max": "3000000000", "current": "1500000000", "stat": "anon 1\ninactive_file 500000000"}.items():
        (folder / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "fs")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(9e9)))
    assert available_memory(torch.device("cpu")) == 2e9
    (folder / "memory.max").write_text("max")
    assert available_memory(torch.device("cpu")) == 9e9
