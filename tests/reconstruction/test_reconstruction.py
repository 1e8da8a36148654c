"""A prior, an estimator, an adaptation and a sampler put together: valid settings, errors and warnings."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network

from ddip_pl.adaptation import LoraTraining, MetaAdaptation, SlicewiseAdaptation, VolumeAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import SENSE, Birdcage, LinearOperator, Measurement, ParallelBeamCT, RandomLines, SingleCoilMRI
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.reconstruction import Reconstruction, Sampler
from ddip_pl.reconstruction.module import SHIPPED_PRIORS

ONE_STEP = Sampler(steps=1, start=100)


def measure(operator: LinearOperator) -> Measurement:
    return Measurement(operator(torch.ones(operator.domain)), operator, 0.1)


@pytest.mark.parametrize(
    ("height", "width", "far"),
    [
        (32, 32, False), (16, 16, False), (15, 15, True), (128, 128, False), (129, 129, True), (129, 8, True),
        (128, 8, False),
    ],
)  # fmt: skip
def test_a_warning_when_images_are_far_from_the_priors_size(
    tiny_prior: Path, height: int, width: int, far: bool, caplog: pytest.LogCaptureFixture
) -> None:
    measurement = measure(SingleCoilMRI((1, height, width), torch.ones(height, width)))
    messages: list[list[str]] = []
    name = "ddip_pl.reconstruction.module"

    def on_step(*_: Any) -> None:
        messages.append([record.getMessage() for record in caplog.records if record.name == name])

    with caplog.at_level(logging.WARNING, "ddip_pl"):
        Reconstruction(str(tiny_prior), DDS(1), sampler=ONE_STEP).reconstruct(measurement, on_step=on_step)
    expected = [
        f"images of {height} x {width} pixels are far from the prior's 32 x 32, results may suffer; "
        "set data.size to 32, or train a prior near this size with ddip-pl fit (docs/sizes.md)"
    ]
    assert messages == [expected if far else []]  # before the first step


@pytest.mark.parametrize("planes", ["slices", "all"])
def test_no_more_slices_than_the_batch_size_pass_through_the_network_at_once(tiny_prior: Path, planes: Any) -> None:
    seen: list[int] = []
    method = Reconstruction(str(tiny_prior), sampler=Sampler(steps=3, planes=planes, floor=0.0), batch_size=3)
    process = method.begin(measure(ParallelBeamCT((8, 32, 32), angles=12)))
    method.denoiser.network.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    list(process.iterate())
    assert max(seen) == 3
    assert sum(seen) == (24 if planes == "slices" else 8 + 32 + 32)


def test_shipped_prior_has_the_channels_of_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priors = {}
    for path in SHIPPED_PRIORS.values():
        assert Path(path).is_file()
    for channels in (1, 2):
        priors[channels] = str(tmp_path / f"{channels}.safetensors")
        save_prior(Path(priors[channels]), make_network(in_channels=channels, out_channels=channels), {}, torch.float32)
    monkeypatch.setattr("ddip_pl.reconstruction.module.SHIPPED_PRIORS", priors)
    method = Reconstruction(sampler=ONE_STEP)
    ct = ParallelBeamCT((6, 32, 32), angles=12)
    mri = SENSE((6, 32, 32), mask=RandomLines(2), maps=Birdcage(2))
    for operator, channels in ((ct, 1), (mri, 2), (ct, 1)):
        result = method.reconstruct(measure(operator))
        assert result.images.shape == (6, channels, 32, 32)
        assert method.prior == result.prior == priors[channels]


def test_a_prior_of_other_channels_is_refused(tiny_prior: Path) -> None:
    measurement = measure(SENSE((2, 32, 32), mask=RandomLines(2), maps=Birdcage(2)))
    with pytest.raises(InputError, match=r"has 1 image channels, SENSE needs 2; choose another --model\.prior"):
        Reconstruction(str(tiny_prior)).begin(measurement)


def test_a_batch_without_slices_is_refused(tiny_prior: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        Reconstruction(str(tiny_prior), batch_size=0)


@pytest.mark.parametrize("adaptation", [SlicewiseAdaptation, MetaAdaptation])
def test_slices_with_weights_of_their_own_are_not_cut_in_other_planes(tiny_prior: Path, adaptation: Any) -> None:
    with pytest.raises(InputError, match=r"set model\.sampler\.planes to slices"):
        Reconstruction(str(tiny_prior), adaptation=adaptation(), sampler=Sampler(planes="all"))
    Reconstruction(str(tiny_prior), adaptation=adaptation(), sampler=Sampler(planes="slices"))


def test_a_volume_does_not_depend_on_when_the_prior_was_loaded(tiny_prior: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ddip_pl.reconstruction.module.SHIPPED_PRIORS", {1: str(tiny_prior)})
    measurement = measure(ParallelBeamCT((4, 32, 32), angles=12))

    def weights(method: Reconstruction) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return list(method.reconstruct(measurement).weights.tensors.values())

    def made(prior: str | None) -> Reconstruction:
        training = LoraTraining(steps=1, discrepancy=0)
        return Reconstruction(prior, adaptation=VolumeAdaptation(2, training=training), sampler=ONE_STEP)

    method = made(None)
    first, again, named = weights(method), weights(method), weights(made(str(tiny_prior)))
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, first, named))
