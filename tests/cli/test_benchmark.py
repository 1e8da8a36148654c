"""`ddip-pl benchmark`: which runs start, are skipped or resumed, and the report."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from ddip_pl import cli
from ddip_pl.cli import benchmark
from ddip_pl.errors import InputError
from ddip_pl.reconstruction import Sampler
from ddip_pl.results.tables import read_tests

TASK = ROOT / "configs/task/sv_ct.yaml"
FBP = ROOT / "configs/method/fbp.yaml"
ABLATIONS = sorted([*(ROOT / "configs/ablation").glob("*.yaml"), *(ROOT / "configs/paper").glob("*.yaml")])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def methods_file(path: Path, prior: Path) -> Path:
    """FBP and DDS with one and with two steps of a tiny prior."""
    dds = {"config": str(ROOT / "configs/method/dds.yaml"), "model.prior": str(prior), "model.sampler.start": 100}
    methods = {
        "fbp": {"config": str(FBP), "data.size": 32},
        "dds, 1 step": dds | {"model.sampler.steps": 1},
        "dds, 2 steps": dds | {"model.sampler.steps": 2},
    }
    path.write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "benchmark.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_methods_in_one_table_and_nothing_twice(folder, tiny_prior, phantom_volume, monkeypatch, capfd):
    arguments = [
        "benchmark", "--tasks", str(TASK), "--methods", str(methods_file(folder / "methods.yaml", tiny_prior)),
        "--volumes", str(phantom_volume), "--slices", "4", "--output", "out",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["ddip-pl", *arguments])
    assert cli.main() == 0
    rows = table(Path("out"))
    assert [row["method"] for row in rows] == ["fbp", "dds, 1 step", "dds, 2 steps"]
    assert {(row["task"], row["volume"], row["slices"]) for row in rows} == {("sv_ct", "phantom", "4")}
    text = Path("out/benchmark.md").read_text()
    for row in rows:
        assert f"| {row['method']} |" in text
        assert f"{float(row['psnr']):.2f}" in text
    assert Path("out/sv_ct-phantom.png").read_bytes().startswith(b"\x89PNG")
    report = Path("out/report.html").read_text()
    assert re.findall(r'"name": "(.*?)"', report) == ["fbp", "dds, 1 step", "dds, 2 steps"]

    # Again, with one of them changed: only that one runs.
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/*/*/*/metrics.json")}
    assert len(stamps) == 3
    changed = yaml.safe_load(Path("methods.yaml").read_text())
    changed["methods"]["dds, 1 step"]["model.sampler.start"] = 200
    Path("methods.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    monkeypatch.setattr(sys, "argv", ["ddip-pl", *arguments])
    assert cli.main() == 0
    again = {path.parts[3] for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert again == {"dds_1_step"}
    assert len(table(Path("out"))) == 3


def test_a_method_that_cannot_run_does_not_stop_the_others(folder, tiny_prior, phantom_volume, monkeypatch, capfd):
    path = methods_file(folder / "methods.yaml", tiny_prior)
    content = yaml.safe_load(path.read_text())
    content["methods"] = {"broken": content["methods"]["dds, 1 step"] | {"model.sampler.steps": 0}} | content["methods"]
    del content["methods"]["dds, 1 step"], content["methods"]["dds, 2 steps"]
    path.write_text(yaml.safe_dump(content))
    arguments = ["--tasks", str(TASK), "--methods", str(path), "--volumes", str(phantom_volume), "--output", "out"]
    assert benchmark.main(arguments) == 2
    out, error = capfd.readouterr()
    assert "steps is 0" in error
    assert "failed: sv_ct, phantom.nii.gz, broken" in " ".join(out.split())
    assert [row["method"] for row in table(Path("out"))] == ["fbp"]


def test_interrupted_run_goes_on_from_its_checkpoint(folder, monkeypatch):
    job = benchmark.Job("task", "method", folder / "a.nii.gz", [TASK, FBP], {"data.slices": 4}, folder / "out")
    calls: list[list[str]] = []

    class Completed:
        returncode = 0

    monkeypatch.setattr(benchmark.subprocess, "run", lambda command: calls.append(command) or Completed())
    job.start()
    (folder / "out" / "last.ckpt").touch()
    job.start()
    job.settings["data.slices"] = 5  # the checkpoint is from a run with other settings
    job.start()
    checkpoint = ["--ckpt_path", str(folder / "out" / "last.ckpt")]
    assert [call[-2:] == checkpoint for call in calls] == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("- a\n", "no named settings"),
        ("methods: {a: {model.steps: 3}}", "'a' has no config"),
        ("methods: {a: {config: nothing.yaml}}", "nothing.yaml"),
        ("a: [", "config"),
    ],
)
def test_bad_files_of_methods_are_refused_before_anything_runs(folder, phantom_volume, content, message):
    path = folder / "bad.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        benchmark.main(["--tasks", str(TASK), "--methods", str(FBP), str(path), "--volumes", str(phantom_volume)])
    assert not Path("outputs").exists()


def test_missing_volume_is_refused_before_anything_runs(folder):
    with pytest.raises(InputError, match="no such file or folder"):
        benchmark.main(["--tasks", str(TASK), "--methods", str(FBP), "--volumes", "no.nii.gz"])


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablations_name_settings_that_exist(path, phantom_volume, monkeypatch, capsys):
    """The command line parses each variation as a separate run."""
    for job in benchmark.plan([TASK], [path], [phantom_volume], {}, Path("out")):
        monkeypatch.setattr(sys, "argv", ["ddip-pl", *job.arguments, "--print_config"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None), job.method
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["method"] == job.method


def test_record_changes_with_the_content_of_a_config(folder):
    config = folder / "method.yaml"
    config.write_text("method: a\n")
    job = benchmark.Job("task", "a", folder / "a.nii.gz", [config], {}, folder / "out")
    before = job.record
    config.write_text("method: a\nmodel: {steps: 3}\n")
    assert job.record != before
    assert json.loads(before)["configs"] == ["method: a\n"]


def test_record_changes_with_the_content_of_a_config_that_another_builds_on(folder):
    sampler, config = folder / "sampler.yaml", folder / "method.yaml"
    sampler.write_text("model: {sampler: {steps: 3}}\n")
    config.write_text("config: sampler.yaml\nmethod: a\n")
    (folder / "a.nii.gz").touch()
    [job] = benchmark.plan([TASK], [config], [folder / "a.nii.gz"], {}, folder / "out")
    before = job.record
    sampler.write_text("model: {sampler: {steps: 4}}\n")
    assert job.record != before


def test_a_variation_can_have_several_configs(folder, phantom_volume, monkeypatch, capsys):
    path = folder / "methods.yaml"
    configs = [str(ROOT / "configs" / name) for name in ("method/ddip.yaml", "sampler/published.yaml")]
    path.write_text(yaml.safe_dump({"methods": {"ddip, published": {"config": configs, "model.batch_size": 2}}}))
    [job] = benchmark.plan([TASK], [path], [phantom_volume], {}, folder / "out")
    assert [path.stem for path in job.configs] == ["sv_ct", "default", "slicewise", "ddip", "published"]
    monkeypatch.setattr(sys, "argv", ["ddip-pl", *job.arguments, "--print_config"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert printed["sampler"] == vars(Sampler.published())
    assert printed["batch_size"] == 2
    assert printed["adaptation"]["class_path"].endswith("SlicewiseAdaptation")


def test_results_of_other_settings_are_not_passed_off_as_finished(folder, phantom_volume, monkeypatch):
    method = folder / "method.yaml"
    method.write_text("method: m\nmodel: DirectInverse\n")
    [job] = benchmark.plan([TASK], [method], [phantom_volume], {}, folder / "out")
    done = job.folder / "phantom"
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    (job.folder / "run.json").write_text(job.record)
    assert job.is_done()
    method.write_text("method: m\nmodel: TotalVariation\n")
    assert not job.is_done()
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))  # it fails
    assert job.start() == 2
    assert not job.is_done()


def test_predictions_below_the_output_are_left_out_of_the_table(folder):
    path = folder / "sv_ct/x/dds/x"
    path.mkdir(parents=True)
    (path / "metrics.json").write_text('{"task": "sv_ct", "method": "dds", "seconds": 1}')
    (path / "trajectory.csv").write_text("step,residual\n1,0.5\n")
    assert read_tests(folder, ["dds"]) == []
