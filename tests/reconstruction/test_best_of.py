"""A method chosen by the data: the choice, the run of the chosen one, going on in the middle, candidates that fail."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS, TASK, quiet_trainer
from torch.utils.data import DataLoader

from ddip_pl import BestOf, cli, load_method
from ddip_pl.adaptation import LoraTraining, VolumeAdaptation
from ddip_pl.baselines import Baseline, TotalVariation
from ddip_pl.baselines.baseline import step
from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.data.module import Scan
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDNM, DDS, DiffusionMBIR
from ddip_pl.physics import ConeBeamCT, LinearOperator, Measurement, ParallelBeamCT, simulate
from ddip_pl.physics.held_out import split
from ddip_pl.prior.phantoms import RandomEllipses, phantoms
from ddip_pl.reconstruction import Method, Reconstruction, Sampler, Step
from ddip_pl.reconstruction.best_of import Trials
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.results.folder import read_run
from ddip_pl.results.result import Result
from ddip_pl.volumes.frame import Frame

FEW = Sampler(steps=2, start=150, floor=0.0)


def measure(operator: LinearOperator, sigma_y: float = 0.02) -> Measurement:
    """Ellipses, one fewer in each slice."""
    slices, size, _ = operator.shape
    ellipses = torch.from_numpy(RandomEllipses(1, 8, "uniform")[0]["ellipses"])
    x = torch.cat([phantoms(ellipses[None, i % 4 :], size) for i in range(slices)])
    y = simulate(x, operator, sigma_y, torch.Generator().manual_seed(1))
    return Measurement(y, operator, sigma_y, x)


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return measure(ParallelBeamCT((6, 32, 32), 20))


class Random(Baseline):
    """Adds random numbers to the direct inversion, so its result depends on their state. It stops after 2 steps."""

    def __init__(self, size: float = 1.0, iterations: int = 4):
        super().__init__(iterations)
        self.size = size

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        for _ in range(2):
            images = measurement.operator.pseudo_inverse(measurement.y)
            yield step(images + self.size * torch.rand(images.shape), measurement)


class Refusing(Baseline):
    """Refuses every measurement, at once or at the first step."""

    def __init__(self, at_once: bool):
        super().__init__(1)
        self.at_once = at_once

    def begin(self, measurement: Measurement, *arguments: Any) -> Any:
        if self.at_once:
            raise InputError("no")
        return super().begin(measurement, *arguments)

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        raise InputError("no")
        yield


def tv(strength: float = 0.3) -> TotalVariation:
    return TotalVariation(strength, iterations=30)


def adapted(prior: Path, data: float = 1.0) -> Reconstruction:
    """D3IP; `data` is the weight of the data."""
    training = LoraTraining(steps=1, discrepancy=0, horizon=0)
    return Reconstruction(str(prior), DDS(2, data), VolumeAdaptation(2, training=training), FEW)


def alone(method: Method, measurement: Measurement) -> Result:
    torch.manual_seed(0)
    return method.reconstruct(measurement)


# --- the choice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_the_better_one_is_chosen_and_its_result_is_that_of_the_method_alone(
    measurement: Measurement, reverse: bool
) -> None:
    candidates: dict[str, Method] = {"good": tv(), "too smooth": tv(30.0), "random": Random()}
    order = sorted(candidates, reverse=reverse)
    result = alone(BestOf({name: candidates[name] for name in order}, slices=3), measurement)
    rivals = {name: alone(candidate, measurement) for name, candidate in candidates.items()}
    assert result.ranking[0][0] == "good" == max(rivals, key=lambda name: rivals[name].metrics()["psnr"])
    assert torch.equal(result.tensor, rivals["good"].tensor)
    assert set(result.choice) == set(candidates)
    assert [score for _, score in result.ranking] == sorted(result.choice.values())
    assert result.prior is None


def test_the_score_is_the_discrepancy_of_images_of_some_slices_on_data_they_have_not_seen(
    measurement: Measurement,
) -> None:
    result = alone(BestOf({"a": tv(), "b": tv(1.0)}, slices=4, share=0.2, seed=3), measurement)
    kept, hidden = split(measurement[1:5], 0.2, 3)
    for name, method in {"a": tv(), "b": tv(1.0)}.items():
        assert result.choice[name] == hidden.discrepancy(alone(method, kept).tensor)


def test_no_candidate_sees_the_reference(measurement: Measurement) -> None:
    kept = BestOf({"a": tv()}).begin(measurement)
    assert kept.trials["a"].measurement.reference is None  # type: ignore[attr-defined]


def test_random_numbers_of_a_run_do_not_depend_on_the_other_candidates(
    measurement: Measurement, tiny_prior: Path
) -> None:
    few = BestOf({"random": Random(0.2), "worse": Random(5.0)})
    many = BestOf({"worse": Random(5.0), "adapted": adapted(tiny_prior), "random": Random(0.2)})
    first, second = (alone(method, measurement).choice for method in (few, many))
    assert {name: second[name] for name in first} == first
    assert torch.equal(alone(few, measurement).tensor, alone(Random(0.2), measurement).tensor)


def test_a_method_with_a_prior(measurement: Measurement, tiny_prior: Path) -> None:
    result = alone(BestOf({"adapted": adapted(tiny_prior), "worse": Random(9.0)}), measurement)
    expected = alone(adapted(tiny_prior), measurement)
    assert torch.equal(result.tensor, expected.tensor)
    assert result.prior == str(tiny_prior)
    assert result.weights.count == expected.weights.count > 0
    assert all(torch.equal(result.weights.tensors[name], value) for name, value in expected.weights.tensors.items())
    trials = [row for row in result.trajectory if "trial" in row]
    assert [row["trial"] for row in trials] == [1, 1, 2, 2]
    assert all(row.keys() == {"trial", "trial_residual", "seconds", "peak_memory_bytes"} for row in trials)
    assert [row["t"] for row in result.trajectory[4:]] == [row["t"] for row in expected.trajectory]


def test_slices_measured_together_are_tried_together() -> None:
    measurement = measure(ConeBeamCT((2, 12, 12), 12))
    result = alone(BestOf({"good": tv(), "random": Random(9.0)}, slices=1, share=0.2), measurement)
    assert result.ranking[0][0] == "good"
    assert torch.equal(result.tensor, alone(tv(), measurement).tensor)


def test_it_moves_with_its_candidates(tiny_prior: Path) -> None:
    candidate = adapted(tiny_prior)
    method = BestOf({"name with a dot 0.1": candidate}).to("meta")
    assert next(candidate.parameters()).is_meta
    assert candidate.device.type == "meta"
    assert method.image_size == 32


# --- steps ----------------------------------------------------------------------------------------------------


def test_steps_are_counted(measurement: Measurement, tiny_prior: Path) -> None:
    """The maximum falls when a trial ends early, and the last step is known as the last if the method has it so."""
    seen: list[tuple[int, int]] = []
    shapes: list[Any] = []

    def on_step(done: int, steps: int, step: Step) -> None:
        seen.append((done, steps))
        shapes.append(step.images["estimate"].shape if step.images else None)

    method = BestOf({"random": Random(9.0, iterations=10), "adapted": adapted(tiny_prior)}, slices=2)
    method.reconstruct(measurement, on_step=on_step)
    assert seen == [(1, 22), (2, 22), (3, 14), (4, 6), (5, 6), (6, 6)]
    assert shapes == [None] * 4 + [(6, 1, 32, 32)] * 2


# --- going on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winner", ["adapted", "random"])
def test_every_saved_state_leads_to_the_same_result(measurement: Measurement, tiny_prior: Path, winner: str) -> None:
    def method() -> BestOf:
        size, data = (1e-3, 1e-6) if winner == "random" else (9.0, 1.0)
        candidates: dict[str, Method] = {
            "refusing": Refusing(False), "adapted": adapted(tiny_prior, data), "random": Random(size),
        }  # fmt: skip
        return BestOf(candidates, slices=2)

    def run(process: Trials, state: Any = None) -> tuple[list[Step], list[Any]]:
        """All steps, and the states after each of them."""
        torch.manual_seed(0)
        steps, states = [], []
        for each in process.iterate(state):
            steps.append(each)
            states.append(in_a_file(process.state_dict()))
        return steps, states

    with torch.no_grad():
        process = method().begin(measurement)
        steps, states = run(process)
        assert process.chosen == winner
        count = len(steps) - (winner == "adapted")  # after the last of its steps, a method with a prior is done
        for number, state in enumerate(states[:count], 1):
            again = method().begin(measurement)
            rest, _ = run(again, state)
            assert torch.equal(rest[-1].images["estimate"], steps[-1].images["estimate"])
            assert again.choice == process.choice
            assert again.weights.count == process.weights.count
            figures = [each.figures for each in steps[number:] or steps[-1:]]
            assert [each.figures for each in rest] == figures


def in_a_file(state: Any) -> Any:
    """A state after it was in a file."""
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_in_lightnings_trainer_interrupted_and_continued(
    measurement: Measurement, tiny_prior: Path, tmp_path: Path
) -> None:
    class Save(ReconstructionCallback):
        def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
            if done in (1, 5):
                trainer.save_checkpoint(tmp_path / f"{done}.ckpt")

    def predict(*callbacks: Any, ckpt_path: Path | None = None) -> Result:
        method = BestOf({"adapted": adapted(tiny_prior), "random": Random(9.0)}, slices=2)
        torch.manual_seed(0)
        data: Any = DataLoader([Scan(measurement, Frame())], batch_size=None)  # type: ignore[list-item]
        (result,) = quiet_trainer(*callbacks).predict(method, data, ckpt_path=ckpt_path)  # type: ignore[misc]
        return result  # type: ignore[return-value]

    whole = predict(Save())
    expected = alone(adapted(tiny_prior), measurement)
    assert torch.equal(whole.tensor, expected.tensor)
    for done in (1, 5):
        continued = predict(ckpt_path=tmp_path / f"{done}.ckpt")
        assert torch.equal(continued.tensor, whole.tensor)
        assert continued.choice == whole.choice
        assert len(continued.trajectory) == len(whole.trajectory)


# --- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
def test_a_candidate_that_refuses_the_measurement_is_left_out(
    measurement: Measurement, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = alone(BestOf({"refusing": Refusing(at_once), "good": tv()}), measurement)
    assert list(result.choice) == ["good"]
    assert "refusing is left out: no" in caplog.text


def test_a_candidate_without_finite_images_is_left_out(measurement: Measurement) -> None:
    result = alone(BestOf({"broken": Random(float("nan")), "good": tv()}), measurement)
    assert list(result.choice) == ["good"]


def test_a_method_for_neighbouring_slices_is_left_out_of_a_trial_with_one(
    measurement: Measurement, tiny_prior: Path
) -> None:
    candidates = {"mbir": Reconstruction(str(tiny_prior), DiffusionMBIR(), sampler=FEW), "good": tv()}
    assert list(alone(BestOf(candidates, slices=1), measurement).choice) == ["good"]


@pytest.mark.parametrize("at_once", [True, False])
def test_all_refuse(measurement: Measurement, at_once: bool) -> None:
    method = BestOf({"first": Refusing(at_once), "second": Refusing(at_once)})
    with pytest.raises(InputError, match="none of first, second can reconstruct the measurement"):
        alone(method, measurement)


def test_without_noise_there_is_nothing_to_compare(measurement: Measurement) -> None:
    with pytest.raises(InputError, match=r"data\.sigma_y is 0"):
        BestOf({"good": tv()}).begin(replace(measurement, sigma_y=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": {}}, "candidates is empty"),
        ({"slices": 0}, "slices is 0"),
        ({"share": 0}, "share is 0"),
        ({"share": 1.0}, "share is 1.0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BestOf(**({"candidates": {"tv": tv()}} | settings))


# --- the shipped method ---------------------------------------------------------------------------------------


def test_candidates_are_the_shipped_methods() -> None:
    content = yaml.safe_load((CONFIGS / "method" / "auto.yaml").read_text())["model"]["init_args"]["candidates"]
    method = load_method("auto")
    assert isinstance(method, BestOf)
    assert list(method.candidates) == list(content)
    for name, candidate in method.candidates.items():
        alone = load_method(name.split()[0])
        assert type(candidate) is type(alone)
        for part in ("estimator", "adaptation"):
            assert type(getattr(candidate, part, None)) is type(getattr(alone, part, None))
        if name == "dds fast":
            fast = yaml.safe_load((CONFIGS / "sampler" / "fast.yaml").read_text())["model"]["sampler"]
            assert candidate.sampler == replace(Sampler(), **fast)  # type: ignore[union-attr]
        else:
            assert getattr(candidate, "sampler", None) == getattr(alone, "sampler", None)


def test_settings_of_one_candidate_on_the_command_line() -> None:
    given = [*TASK, "--config", f"{CONFIGS}/method/auto.yaml", "--data.path", "x.nii"]
    parser = make_parser("test")
    settings = parser.read([*given, "--model.candidates.ddnm.sampler.steps", "3"])
    candidates: Any = parser.instantiate(settings).model.candidates
    assert isinstance(candidates["ddnm"].estimator, DDNM)
    assert {name: part.sampler.steps for name, part in candidates.items() if isinstance(part, Reconstruction)} == {
        "dds": 80, "dds fast": 16, "ddnm": 3, "diffusion_mbir": 80, "d3ip_em": 80,
    }  # fmt: skip


def test_on_the_command_line(
    tmp_path: Path, phantom_volume: Path, tiny_prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    prior = {"class_path": "Reconstruction", "init_args": {"prior": str(tiny_prior), "sampler": vars(FEW)}}
    candidates = {
        "tv": {"class_path": "TotalVariation", "init_args": {"iterations": 5}},
        "dds": prior, "smooth": {"class_path": "TotalVariation", "init_args": {"iterations": 5, "strength": 1000.0}},
    }  # fmt: skip
    model = {"class_path": "ddip_pl.BestOf", "init_args": {"candidates": candidates, "slices": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"method": "mine", "model": model}))
    given = ("--data.path", str(phantom_volume), "--data.slices", "4", "--output", str(tmp_path / "out"))
    monkeypatch.setattr("sys.argv", ["ddip-pl", "test", *TASK, "--config", str(tmp_path / "mine.yaml"), *given])
    assert cli.main() == 0
    metrics = json.loads((tmp_path / "out/phantom/metrics.json").read_text())
    scores = metrics["hidden_discrepancy"]
    assert set(scores) == set(candidates)
    assert list(scores.values()) == sorted(scores.values())
    assert metrics["chosen"] == next(iter(scores))
    (_, first), (other, second), _ = scores.items()
    line = f"chosen: {metrics['chosen']} (hidden discrepancy {first:.3g}; next: {other} {second:.3g})"
    assert line in capsys.readouterr().out
    assert f'"chosen": "{metrics["chosen"]}"' in (tmp_path / "out/phantom/report.html").read_text()
    assert read_run(tmp_path / "out/phantom").metrics["hidden_discrepancy"] == scores
    assert np.isfinite(
        [row["residual"] for row in read_run(tmp_path / "out/phantom").trajectory if "residual" in row]
    ).all()
