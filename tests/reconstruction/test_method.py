"""Every kind of method in a plain Lightning Trainer, and without one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network, quiet_trainer
from lightning import Trainer
from torch.utils.data import DataLoader

from ddip_pl.adaptation import LoraTraining, VolumeAdaptation
from ddip_pl.adaptation.lora import LoRA, LoraWeights
from ddip_pl.baselines import DeepImagePrior, DirectInverse, L1Wavelet, TotalVariation
from ddip_pl.data.module import Scan
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT, RandomLines, SingleCoilMRI, simulate
from ddip_pl.prior.checkpoint import load_prior, save_prior
from ddip_pl.reconstruction import Method, Reconstruction, Sampler, Step
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.results.provenance import digest
from ddip_pl.results.result import Result
from ddip_pl.volumes.frame import Frame

TWO = Sampler(steps=2, start=150)
METHODS: dict[str, Any] = {
    "dds": lambda prior: Reconstruction(prior, sampler=TWO),
    "d3ip": lambda prior: Reconstruction(
        prior, DDS(2), VolumeAdaptation(2, training=LoraTraining(steps=1, discrepancy=0)), TWO
    ),
    "fbp": lambda prior: DirectInverse(),
    "admm_tv": lambda prior: TotalVariation(iterations=3),
    "l1_wavelet": lambda prior: L1Wavelet(iterations=3),
    "dip": lambda prior: DeepImagePrior(iterations=2),
}
each_method = pytest.mark.parametrize("name", METHODS)


def make_scan(operator: LinearOperator) -> Scan:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(operator.domain, generator=generator)
    measurement = Measurement(simulate(x, operator, 1e-2, generator), operator, 1e-2, x)
    return Scan(measurement, Frame("squares", margin=(2, 2, 4, 4)))


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan(ParallelBeamCT((4, 32, 32), angles=12))


def loader(*scans: Scan) -> Any:
    return DataLoader(scans, batch_size=None)  # type: ignore[arg-type]


def make(name: str, prior: Path) -> Method:
    torch.manual_seed(0)
    method: Method = METHODS[name](str(prior))
    torch.manual_seed(0)
    return method


class Keep(ReconstructionCallback):
    """Keeps the results of `test`."""

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs


@each_method
def test_in_lightnings_own_trainer(name: str, tiny_prior: Path, scan: Scan) -> None:
    """`test` logs the result's `metrics`; `predict` gives the same volume without a reference."""
    keep = Keep()
    logged = quiet_trainer(keep).test(make(name, tiny_prior), loader(scan), verbose=False)
    metrics = keep.result.metrics()
    assert logged == [{key: pytest.approx(metrics[key]) for key in ("psnr", "ssim", "residual", "discrepancy")}]
    assert keep.result.frame is scan.frame
    assert keep.result.volume.shape == (4, 1, 28, 24)
    (predicted,) = quiet_trainer().predict(make(name, tiny_prior), loader(scan))  # type: ignore[misc]
    assert isinstance(predicted, Result)
    assert torch.equal(predicted.images, keep.result.images)
    assert predicted.measurement.reference is None
    assert predicted.metrics().keys() & {"psnr", "ssim"} == set()
    assert predicted.metrics(scan.measurement.reference) == pytest.approx(metrics)


@each_method
def test_without_a_trainer_the_same_volume(name: str, tiny_prior: Path, scan: Scan) -> None:
    seen: list[tuple[int, int]] = []
    steps: list[Step] = []

    def on_step(done: int, of: int, step: Step) -> None:
        seen.append((done, of))
        steps.append(step)

    result = make(name, tiny_prior).reconstruct(*scan, on_step)
    (predicted,) = quiet_trainer().predict(make(name, tiny_prior), loader(scan))  # type: ignore[misc]
    assert isinstance(predicted, Result)
    assert torch.equal(result.images, predicted.images)
    assert [done for done, _ in seen] == list(range(1, len(result.trajectory) + 1))
    assert all(done <= of for done, of in seen)
    assert [dict(step.figures) for step in steps] == result.trajectory
    timeless = [[{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_bytes")} for row in r.trajectory]
                for r in (result, predicted)]  # fmt: skip
    assert timeless[0] == timeless[1]
    assert result.seconds == sum(row["seconds"] for row in result.trajectory) > 0
    assert result.peak_memory_bytes > 0
    assert result.weights.count == predicted.weights.count
    assert (result.weights.count > 0) == (name == "d3ip")


def test_lightnings_trainer_with_its_own_defaults(
    tiny_prior: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logged = Trainer(accelerator="cpu").test(make("dds", tiny_prior), loader(scan), verbose=False)
    assert logged[0].keys() == {"psnr", "ssim", "residual", "discrepancy"}


def test_residual_and_discrepancy_are_logged_where_there_is_no_truth(tiny_prior: Path, scan: Scan) -> None:
    blind = Scan(replace(scan.measurement, reference=None), scan.frame)
    logged = quiet_trainer().test(make("dds", tiny_prior), loader(blind), verbose=False)
    assert logged[0].keys() == {"residual", "discrepancy"}


def test_means_over_volumes_are_logged(tiny_prior: Path, scan: Scan) -> None:
    other = make_scan(ParallelBeamCT((4, 32, 32), angles=8))
    apart = [quiet_trainer().test(make("fbp", tiny_prior), loader(s), verbose=False)[0] for s in (scan, other)]
    (logged,) = quiet_trainer().test(make("fbp", tiny_prior), loader(scan, other), verbose=False)
    for name, mean in logged.items():
        assert mean == pytest.approx((apart[0][name] + apart[1][name]) / 2)


@pytest.mark.parametrize("name", ["fbp", "dds"])
def test_images_are_zero_where_nothing_is_measured(name: str, tiny_prior: Path) -> None:
    class Left(ParallelBeamCT):
        def visible(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[..., :16], torch.zeros_like(x[..., 16:])], dim=-1)

    images = make(name, tiny_prior).reconstruct(make_scan(Left((4, 32, 32), angles=12)).measurement).images
    assert images[..., :16].any()
    assert not images[..., 16:].any()


def test_checkpoint_and_resume(tiny_prior: Path, scan: Scan, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"

    class Save(Keep):
        steps: list[int]

        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            self.steps = []

        def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
            self.steps.append(done)
            if done == 1 and not path.exists():
                trainer.save_checkpoint(path)

    first, second = Save(), Save()
    quiet_trainer(first).test(make("d3ip", tiny_prior), loader(scan), verbose=False)
    quiet_trainer(second).test(make("d3ip", tiny_prior), loader(scan), ckpt_path=path, verbose=False)
    assert (first.steps, second.steps) == ([1, 2], [2])
    assert torch.equal(first.result.images, second.result.images)
    assert len(first.result.trajectory) == len(second.result.trajectory) == 2


def test_a_baseline_saves_a_checkpoint_but_does_not_go_on_from_one(
    tiny_prior: Path, scan: Scan, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"

    class Save(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
            trainer.save_checkpoint(path)

    quiet_trainer(Save()).test(make("admm_tv", tiny_prior), loader(scan), verbose=False)
    with pytest.raises(InputError, match="TotalVariation cannot continue from a checkpoint"):
        quiet_trainer().test(make("admm_tv", tiny_prior), loader(scan), ckpt_path=path, verbose=False)


def test_complex_values(tiny_prior: Path) -> None:
    scan = make_scan(SingleCoilMRI((2, 32, 32), RandomLines(2)))
    keep = Keep()
    (logged,) = quiet_trainer(keep).test(make("dds", tiny_prior), loader(scan), verbose=False)
    assert logged["residual"] == pytest.approx(keep.result.metrics()["residual"])


def test_a_reconstruction_that_diverges_ends_at_once_without_a_result(tiny_prior: Path, scan: Scan) -> None:
    method = Reconstruction(str(tiny_prior), sampler=TWO)
    next(method.denoiser.parameters()).fill_(float("nan"))
    seen: list[int] = []
    with pytest.raises(InputError, match="has diverged: voxels are NaN or infinite after 1 steps"):
        method.reconstruct(*scan, lambda done, of, step: seen.append(done))
    keep = Keep()
    with pytest.raises(InputError, match="has diverged"):
        quiet_trainer(keep).test(method, loader(scan), verbose=False)
    assert not seen
    assert not hasattr(keep, "result")


def test_weights_of_another_prior_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    priors = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(priors):
        torch.manual_seed(seed)
        save_prior(path, make_network(), card={})
    network = load_prior(priors[0])
    LoraWeights(LoRA(network, rank=2).state_dict(), rank=2).save(tmp_path, priors[0].name, digest(priors[0]))
    training = LoraTraining(start_from=str(tmp_path / "lora"))
    Reconstruction(str(priors[0]), adaptation=VolumeAdaptation(1, training=training))
    assert not caplog.messages
    Reconstruction(str(priors[1]), adaptation=VolumeAdaptation(1, training=training))
    assert caplog.messages == ["the weights to start from were trained on another prior than 2.safetensors"]
