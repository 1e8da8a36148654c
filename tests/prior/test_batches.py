"""A device that runs out of memory: smaller batches, the same result. Injected, so that a CPU runs out too."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_network
from torch import Tensor

from ddip_pl.adaptation import (
    Adaptation,
    LoraTraining,
    NoAdaptation,
    SelfTraining,
    SlicewiseAdaptation,
    VolumeAdaptation,
)
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS, DPS, PosteriorMean
from ddip_pl.physics import Measurement, ParallelBeamCT
from ddip_pl.prior.batches import Batches
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.unet import UNet
from ddip_pl.reconstruction import ReverseDiffusion, Sampler
from ddip_pl.reconstruction.step import watched

SIZE, SLICES = 16, 6


def small(most: int, with_gradient: int | None = None, after: int = 0) -> tuple[UNet, list[int]]:
    """A network whose device has too little memory for more images, from some call on; and the sizes that it had."""
    network, sizes = make_network(num_channels=32), list[int]()
    calls = iter(range(10**6))

    def check(_: object, arguments: tuple[Tensor, Tensor]) -> None:
        limit = with_gradient if with_gradient is not None and torch.is_grad_enabled() else most
        if next(calls) >= after:
            if len(arguments[0]) > limit:
                raise torch.OutOfMemoryError("too many images")
            sizes.append(len(arguments[0]))

    network.register_forward_pre_hook(check)
    return network, sizes


def measure() -> Measurement:
    operator = ParallelBeamCT((SLICES, SIZE, SIZE), angles=8)
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    return Measurement(operator(x), operator, 1e-3, x)


def images() -> Tensor:
    return torch.rand(SLICES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def out_of_memory_above(most: int) -> Callable[[slice], list[int]]:
    def work(batch: slice) -> list[int]:
        if batch.stop - batch.start > most:
            raise torch.OutOfMemoryError("too many")
        return [*range(batch.start, batch.stop)]

    return work


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [(8, 8, [8, 2]), (8, 7, [4, 4, 2]), (8, 1, [1] * 10), (100, 3, [2] * 5), (3, 2, [1] * 10)],
)
def test_batches_are_halved_until_they_fit(size: int, most: int, expected: list[int]) -> None:
    batches = Batches(size)
    found = batches.map(out_of_memory_above(most), 10)
    assert [len(part) for part in found] == expected
    assert [index for part in found for index in part] == [*range(10)]
    assert batches.size == expected[0]  # from now on


def test_a_single_image_must_fit() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Batches(8).map(out_of_memory_above(0), 10)


def test_the_denoiser_and_its_views_go_on_with_fewer_images(caplog: pytest.LogCaptureFixture) -> None:
    expected = Denoiser(make_network(num_channels=32), batch_size=1)(images(), 100)
    network, sizes = small(2)
    denoiser = Denoiser(network)
    with caplog.at_level(logging.WARNING, "ddip_pl"):
        found = denoiser.across("rows")(images(), 100), denoiser(images(), 100)
    assert torch.allclose(found[1][1], expected[1], atol=1e-5)
    assert torch.allclose(found[1][0], expected[0], atol=1e-5)
    assert set(sizes) == {2}
    assert denoiser.batches.size == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 images at once; going on with 4",
        "out of memory with 4 images at once; going on with 2",
    ]


def training() -> LoraTraining:
    return LoraTraining(steps=2, discrepancy=0)


METHODS: dict[str, tuple[PosteriorMean, Callable[[], Adaptation], int]] = {
    "dds": (DDS(3), NoAdaptation, 0),
    "dps": (DPS(), NoAdaptation, 0),
    "ddip": (DDS(3), lambda: SlicewiseAdaptation(training()), 0),
    "ddip, in the middle": (DDS(3), lambda: SlicewiseAdaptation(training()), 2),
}


def run(network: UNet, method: str) -> ReverseDiffusion:
    estimator, adaptation, _ = METHODS[method]
    torch.manual_seed(0)
    denoiser = Denoiser(network).requires_grad_(False)
    sampler = Sampler(steps=2, planes="slices")
    diffusion = ReverseDiffusion(measure(), denoiser, estimator, adaptation(), sampler)
    for _ in diffusion.iterate():
        pass
    return diffusion


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gives_the_same_volume(method: str) -> None:
    plain = run(small(100)[0], method)
    network, sizes = small(4, 2, after=METHODS[method][2])
    found = run(network, method)
    assert max(sizes) <= 4
    assert found.mean is not None
    assert plain.mean is not None
    assert torch.allclose(found.mean, plain.mean, atol=2e-4)
    assert found.denoiser.batches.size < 8


def test_a_checkpoint_keeps_the_size_of_the_batches() -> None:
    denoiser = Denoiser(small(2)[0]).requires_grad_(False)
    adaptation: Any = SlicewiseAdaptation(training())
    first = ReverseDiffusion(measure(), denoiser, DDS(3), adaptation, Sampler(steps=2, planes="slices"))
    torch.manual_seed(0)
    steps = first.iterate()
    next(steps)
    state = first.state_dict()
    *_, last = steps
    again = Denoiser(small(100)[0]).requires_grad_(False)
    adaptation = SlicewiseAdaptation(training())
    second = ReverseDiffusion(measure(), again, DDS(3), adaptation, Sampler(steps=2, planes="slices"))
    torch.manual_seed(0)
    *_, resumed = second.iterate(state)
    assert again.batches.size == denoiser.batches.size == 1
    assert torch.equal(resumed.images["estimate"], last.images["estimate"])


@pytest.mark.parametrize("adaptation", [VolumeAdaptation(3, training=training()), SelfTraining(steps=2)])
def test_what_cannot_be_halved_ends_the_run_in_one_line(adaptation: Adaptation) -> None:
    denoiser = Denoiser(small(8, 0)[0]).requires_grad_(False)
    diffusion = ReverseDiffusion(measure(), denoiser, DDS(3), adaptation, Sampler(steps=1, planes="slices"))
    with pytest.raises(InputError, match=r"out of memory; lower data\.slices") as error:
        list(watched(diffusion.iterate(), torch.device("cpu")))
    assert "\n" not in str(error.value)
