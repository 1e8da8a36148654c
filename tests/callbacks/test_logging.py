"""What loggers record of a run, read back from their files; and sweeps of runs."""

import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import psutil
import pytest
import wandb
import yaml
from helpers import CONFIGS, D3IP, DDS, FIT, TASK
from lightning import Trainer
from wandb import wandb_agent

from ddip_pl import cli
from ddip_pl.callbacks.checkpoint import DiffusionCheckpoint
from ddip_pl.callbacks.logging import RunLogging
from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.errors import InputError
from ddip_pl.evaluation.pictures import tri_planar
from ddip_pl.reconstruction import ReverseDiffusion
from ddip_pl.reconstruction.step import Step
from ddip_pl.results.folder import read_table

SWEEPS = sorted((CONFIGS / "sweep").glob("*.yaml"))
CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv")


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    """Keep runs offline and out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(tmp_path_factory.mktemp(name.lower())))
        for name in ("PROJECT", "RUN_ID", "SWEEP_ID", "DIR"):
            patch.delenv(f"WANDB_{name}", raising=False)
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """`ddip-pl` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddip-pl", *arguments])
        try:
            return cli.main()
        finally:
            wandb.finish()


class Log:
    """A run file of W&B, read by W&B's own reader.

    Attributes:
        files: folder with media.
        run: the record of the run.
        history: rows of figures in the order they were logged.
        summary, config: as of the end.
        artifacts: records of files by type.
    """

    def __init__(self, folder: Path):
        [path] = folder.glob("wandb/offline-run-*/*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", str(path)]
        lines = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout.splitlines()
        end = subprocess.run([*command, "--summary", "--json"], capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in lines]

        def of(kind: str) -> list[dict[str, Any]]:
            return [record[kind] for record in records if record["type"] == kind]

        self.files = path.parent / "files"
        self.run, self.history = of("run")[0], [record["item"] for record in of("history")]
        self.summary, self.config = json.loads(end)["summary"], json.loads(end)["config"]
        self.artifacts = {record["type"]: record for record in of("artifact")}

    def steps(self, key: str) -> list[int]:
        """Steps at which a figure (or a file) was logged."""
        return [row["trainer/global_step"] for row in self.history if key in row or f"{key}._type" in row]

    def image(self, key: str) -> list[np.ndarray]:
        """All pictures of that name."""
        paths = [row[f"{key}.path"] for row in self.history if f"{key}.path" in row]
        return [matplotlib.image.imread(self.files / path) for path in paths]


@pytest.fixture(scope="module")
def results(tmp_path_factory, phantom_volume, tiny_prior) -> Path:
    """Results of D3IP, five steps, a picture every second one."""
    folder = tmp_path_factory.mktemp("run") / "out"
    given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", str(folder))
    more = ("--data.slices", "4", "--model.sampler.steps", "5", "--wandb", "offline", "--images_every", "2")
    assert run("test", *D3IP, *given, *more) == 0
    return folder / "phantom"


@pytest.fixture(scope="module")
def log(results) -> Log:
    return Log(results.parent)


# --- test and predict ---------------------------------------------------------------------------------------------


def test_every_diffusion_step_is_logged_once(log, results):
    with (results / "trajectory.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [row for row in log.history if "diffusion/t" in row]
    assert [row["trainer/global_step"] for row in logged] == [1, 2, 3, 4, 5]
    assert {"residual", "loss_before", "loss_after", "lora_norm", "seconds", "peak_memory_bytes"} < set(rows[0])
    for row, truth in zip(logged, rows, strict=True):
        found = {name.removeprefix("diffusion/"): v for name, v in row.items() if name.startswith("diffusion/")}
        expected = {name: float(value) for name, value in truth.items() if name != "step" and value}
        assert found == pytest.approx(expected)


def test_pictures_every_few_steps_and_at_the_last(log):
    for name in ("images/x0_hat", "images/estimate"):
        assert log.steps(name) == [2, 4, 5]
        pictures = log.image(name)
        assert {picture.shape[:2] for picture in pictures} == {(28 + 2 * 4 * 2, 32)}  # 3 mm slices, 2 mm pixels
        for first, second in itertools.pairwise(pictures):
            assert np.abs(first - second).max() > 0.01
    assert np.abs(log.image("images/x0_hat")[-1] - log.image("images/estimate")[-1]).max() > 0.01


def test_figures_of_the_volume_are_those_of_its_file(log, results):
    metrics = json.loads((results / "metrics.json").read_text())
    figures = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    assert {"psnr", "ssim", "residual", "discrepancy", "seconds"} < set(figures)
    assert {name: log.summary[name] for name in figures} == pytest.approx(figures)
    assert log.steps("psnr") == [5, 0]  # of the volume, and at the end Lightning's mean over all volumes


def test_table_has_a_row_for_every_slice(log, results):
    [path] = [row["slice_table.path"] for row in log.history if "slice_table.path" in row]
    table = json.loads((log.files / path).read_text())
    with (results / "slices.csv").open() as file:
        names, *rows = csv.reader(file)
    assert table["columns"] == names == ["slice", "psnr", "ssim"]
    np.testing.assert_allclose(table["data"], np.array(rows, dtype=float))
    assert len(rows) == 4


def test_panel_volume_and_weights_are_those_of_the_writer(log, results):
    [planes] = log.image("planes")
    np.testing.assert_array_equal(planes, matplotlib.image.imread(results / "figures" / "planes.png"))
    for kind, files in (
        ("reconstruction", ["reconstruction.nii.gz"]),
        ("lora", ["adapter_config.json", "adapter_model.safetensors"]),
    ):
        artifact = log.artifacts[kind]
        assert artifact["name"] == f"sv_ct-d3ip-phantom-{kind}"
        contents = artifact["manifest"]["contents"]
        assert sorted(content["path"] for content in contents) == files
        assert all(Path(content["local_path"]).is_relative_to(results) for content in contents)


def test_runs_can_be_grouped(log):
    about = log.run
    assert (about["project"], about["run_group"], about["display_name"]) == (
        "ddip-pl",
        "sv_ct phantom",
        "d3ip sv_ct phantom",
    )
    assert about["tags"] == ["sv_ct", "d3ip", "phantom"]
    assert about["job_type"] == "test"
    config = log.config
    assert [config[name] for name in ("task", "method", "volume", "prior")] == [
        "sv_ct",
        "d3ip",
        "phantom",
        "tiny.safetensors",
    ]
    assert config["model"]["init_args"]["adaptation"]["init_args"]["slices"] == 2
    assert config["data"]["init_args"]["operator"]["init_args"]["angles"] == 60


def csv_rows(version: int = 0) -> list[dict[str, str]]:
    with Path(f"csv/lightning_logs/version_{version}/metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("command", ["test", "predict"])
def test_any_logger_gets_the_figures_of_a_baseline(phantom_volume, command):
    given = ("--data.path", str(phantom_volume), "--data.slices", "2", "--data.size", "32", "--output", "out", *CSV)
    assert run(command, *TASK, "--config", f"{CONFIGS}/method/admm_tv.yaml", "--model.iterations", "3", *given) == 0
    rows = csv_rows()
    if command == "test":  # at the end, Lightning's mean over all volumes
        mean = rows.pop()
        assert {name for name, value in mean.items() if value} == {
            "step",
            "epoch",
            "psnr",
            "ssim",
            "residual",
            "discrepancy",
        }
        assert mean["psnr"] == rows[-1]["psnr"]
    *rows, last = rows
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    with open("out/phantom/trajectory.csv") as file:
        assert [row["diffusion/residual"] for row in rows] == [row["residual"] for row in csv.DictReader(file)]
    metrics = json.loads(Path("out/phantom/metrics.json").read_text())
    assert float(last["residual"]) == metrics["residual"]
    assert float(last.get("psnr", "nan")) == pytest.approx(metrics.get("psnr", np.nan), nan_ok=True)
    settings = yaml.unsafe_load(Path("csv/lightning_logs/version_0/hparams.yaml").read_text())
    assert (settings["method"], settings["volume"], settings["prior"]) == ("admm_tv", "phantom", None)
    assert settings["model"]["init_args"]["iterations"] == 3


def test_steps_go_on_over_several_volumes(phantom_volume):
    for name in ("a", "b"):
        shutil.copy(phantom_volume, f"{name}.nii.gz")
        given = ("--data.path", f"{name}.nii.gz", "--data.slices", "2", "--data.size", "32")
        assert run("simulate", *TASK, *given, "--output", f"{name}.h5") == 0
    measured = ("--config", f"{CONFIGS}/task/measured.yaml", "--data.path", "[a.h5,b.h5]", "--output", "out", *CSV)
    method = ("--config", f"{CONFIGS}/method/admm_tv.yaml", "--model.iterations", "3")
    assert run("predict", *measured, *method) == 0
    assert [row["step"] for row in csv_rows() if row["diffusion/residual"]] == ["1", "2", "3", "4", "5", "6"]


def test_log_of_a_run_that_goes_on_has_every_step_once(phantom_volume, tiny_prior, monkeypatch):
    given = (*DDS, "--model.sampler.steps", "4", "--data.path", str(phantom_volume), "--model.prior", str(tiny_prior))
    given = (*given, "--output", "out", "--data.slices", "3")

    def interrupt(callback: DiffusionCheckpoint, trainer: Trainer, done: int, *_: object) -> None:
        if done == 2:
            trainer.save_checkpoint(callback.path)
        if done == 3:
            raise RuntimeError("the power is off")

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionCheckpoint, "on_diffusion_step_end", interrupt)
        assert run("test", *given, *CSV) == 1
    assert [row["step"] for row in csv_rows()] == ["1", "2", "3"]  # a crash does not lose what was logged
    more = ("--wandb", "offline", "--images_every", "3", "--ckpt_path", "out/last.ckpt")
    assert run("test", *given, *CSV, *more) == 0
    assert [row["step"] for row in csv_rows(1) if row["diffusion/t"]] == ["1", "2", "3", "4"]
    assert [row["diffusion/residual"] for row in csv_rows(1)][:3] == [row["diffusion/residual"] for row in csv_rows()]
    log = Log(Path("out"))
    assert (log.steps("diffusion/t"), log.steps("images/estimate")) == ([1, 2, 3, 4], [3, 4])


def test_a_run_outlives_weights_and_biases(phantom_volume, tiny_prior, monkeypatch, caplog):
    given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", "out")
    advance, killed = ReverseDiffusion.advance, []

    def kill(self: ReverseDiffusion) -> Step:
        if self.step == 2:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("wandb"):
                    process.kill()
                    killed.append(process.wait(10))
        return advance(self)

    monkeypatch.setattr(ReverseDiffusion, "advance", kill)
    assert run("test", *DDS, *given, "--model.sampler.steps", "6", "--wandb", "offline") == 0
    assert killed
    assert len(read_table(Path("out/phantom/trajectory.csv"))) == 6
    [warning] = [record.message for record in caplog.records if record.name == "ddip_pl.callbacks.wandb"]
    assert "the run goes on without it" in warning


def test_a_run_that_is_refused_leaves_no_log(phantom_volume, tiny_prior):
    given = ("--data.path", str(phantom_volume), "--model.prior", str(tiny_prior), "--output", "out")
    assert run("test", *D3IP, *given, "--data.slices", "1", "--wandb", "offline") == 2
    assert not Path("out").exists()


def test_nothing_is_logged_unless_it_is_asked_for(phantom_volume, monkeypatch):
    monkeypatch.setattr(RunLogging, "pictures", None)
    given = ("--data.path", str(phantom_volume), "--data.slices", "1", "--data.size", "32", "--output", "out")
    assert run("test", *TASK, "--config", f"{CONFIGS}/method/fbp.yaml", *given) == 0
    assert [path.name for path in Path().rglob("*") if path.parent != Path("out/phantom")][:2] == ["out", "phantom"]
    assert not [*Path().rglob("wandb"), *Path().rglob("lightning_logs")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--wandb", "sometimes"), "wandb"),
        (("--images_every", "0"), "images_every is 0; give a whole number from 1"),
        (("--wandb", "online"), "run `wandb login`, or give --wandb offline"),
    ],
)
def test_bad_settings(phantom_volume, capsys, monkeypatch, arguments, message):
    def nobody() -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", nobody)
    given = ("--data.path", str(phantom_volume), "--output", "out", *arguments)
    assert run("test", *TASK, "--model", "DirectInverse", *given) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_writer_comes_first(tmp_path):
    writer = VolumeWriter(tmp_path, "task", "method")
    log = RunLogging(writer)
    for callbacks in ([log, writer], [log]):
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=callbacks, enable_checkpointing=False)
        with pytest.raises(InputError, match="put the writer before it"):
            log.on_test_start(trainer, None)  # type: ignore[arg-type]


def test_three_planes_in_one_picture():
    volume = np.zeros((5, 7, 9))
    volume[2], volume[:, 3], volume[:, :, 4] = 0.2, 0.4, 0.6  # in the middle: a slice, a row, a column
    affine = np.diag([1.0, -1.0, 2.2, 1.0])
    image = tri_planar(volume, affine)
    assert (image.dtype, image.shape) == (np.uint8, (7 + 2 * (2 * 5), 9))
    assert image[0, 0] == 51
    assert (image[3, 0], image[0, 4]) == (102, 153)
    assert (image[7:17, 0] == 102).all()
    assert (image[17:, 0] == 153).all()
    assert not image[17:, 7:].any()  # rows are fewer than columns
    assert tri_planar(np.full((2, 2, 2), 3.0), affine).max() == 255


# --- fit ----------------------------------------------------------------------------------------------------------


def test_log_of_a_training():
    callbacks = FIT.index("--trainer.callbacks")
    settings = [*FIT[:callbacks], *FIT[callbacks + 2 :]]
    samples = "[{class_path: ddip_pl.callbacks.prior.SampleImages, init_args: {count: 1}}]"
    more = ("--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1", "--trainer.callbacks", samples)
    at = settings.index("--trainer.logger")
    assert run(*settings[:at], *settings[at + 2 :], *more, "--wandb", "offline") == 0
    log = Log(Path("fit"))
    for name in ("train/loss", "train/gradient_norm"):
        assert log.steps(name) == [0, 1, 2, 3]
    assert all(row["train/gradient_norm"] > 0 for row in log.history if "train/gradient_norm" in row)
    assert log.steps("lr-Adam") == [0, 1, 2, 3]
    assert {"val/loss_t20", "val/loss_t800"} < set(log.summary)
    assert log.steps("val/loss") == log.steps("samples") == [1, 3]
    assert log.steps("train/samples") == [0, 1, 2, 3]
    assert log.config["model"]["network"]["image_size"] == 16
    assert (log.run["display_name"], log.run["run_group"], log.run["job_type"]) == ("fit", "prior", "fit")
    with open("fit/lightning_logs/version_0/metrics.csv") as file:
        assert any(row["train/gradient_norm"] for row in csv.DictReader(file))


# --- sweeps -------------------------------------------------------------------------------------------------------


def points(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """All points of a grid."""
    parameters = sweep["parameters"]
    return [
        dict(zip(parameters, v, strict=True)) for v in itertools.product(*(p["values"] for p in parameters.values()))
    ]


def command_of(sweep: dict[str, Any], point: dict[str, Any], monkeypatch) -> list[str]:
    """The command line that W&B's agent starts for a point; it sets the environment as well."""
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **given: started.append(given) or SimpleNamespace())
    agent = SimpleNamespace(
        _sweep_command=sweep["command"], _in_jupyter=False, _function=None, _forward_signals=False, _run_processes={},
    )  # fmt: skip
    arguments = {name: {"value": value} for name, value in point.items()}
    monkeypatch.setenv("WANDB_SWEEP_ID", "some")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    wandb_agent.Agent._command_run(agent, {"run_id": "point", "program": sweep["program"], "args": arguments})
    return started[0]["command"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_sweep_is_a_run(path, folder, phantom_volume, monkeypatch, capsys):
    sweep = yaml.safe_load(path.read_text())
    assert (sweep["method"], sweep["metric"]) == ("grid", {"name": "psnr", "goal": "maximize"})
    monkeypatch.setenv("VOLUME", str(phantom_volume))
    Path("configs").symlink_to(CONFIGS)
    seen = set()
    for point in points(sweep):
        command = command_of(yaml.safe_load(path.read_text()), point, monkeypatch)
        assert command[:3] == ["/usr/bin/env", "ddip-pl", "test"]
        monkeypatch.setattr(sys, "argv", [*command[1:], "--print_config"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None), point
        printed = capsys.readouterr().out
        assert yaml.safe_load(printed)["data"]["init_args"]["path"] == str(phantom_volume)
        seen.add(printed)
    assert len(seen) == len(points(sweep)) >= 4


def test_a_point_of_a_sweep_runs(folder, phantom_volume, tiny_prior, monkeypatch):
    sweep = yaml.safe_load((CONFIGS / "sweep" / "k.yaml").read_text())
    monkeypatch.setenv("VOLUME", str(phantom_volume))
    Path("configs").symlink_to(CONFIGS)
    name = "model.adaptation.init_args.slices"
    command = command_of(sweep, {name: 2}, monkeypatch)
    small = ("--data.slices", "3", "--model.prior", str(tiny_prior), "--model.sampler.steps", "1", "--output", "out")
    wandb.teardown()  # otherwise W&B ignores what the agent has put into the environment
    try:
        assert run(*command[2:], *small) == 0
    finally:
        wandb.teardown()  # otherwise W&B remembers it in later tests
    log = Log(Path("out"))
    assert log.run["run_id"] == "point"
    assert log.config[name] == log.config["model"]["init_args"]["adaptation"]["init_args"]["slices"] == 2
    assert log.summary["psnr"] > 0
