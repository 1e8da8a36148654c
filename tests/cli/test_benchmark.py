"""`ddip-pl benchmark`: which runs start, are skipped or resumed, and the report."""

import csv
import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

from ddip_pl import cli
from ddip_pl.callbacks.fingerprint import difference
from ddip_pl.cli import benchmark
from ddip_pl.errors import InputError
from ddip_pl.reconstruction import Sampler
from ddip_pl.results.tables import read_tests

TASK = ROOT / "configs/task/sv_ct.yaml"
FBP = ROOT / "configs/method/fbp.yaml"
TV = ROOT / "configs/method/admm_tv.yaml"
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


def test_interrupted_run_goes_on_from_its_own_checkpoint_only(folder, monkeypatch):
    job = benchmark.Job("task", "method", folder / "a.nii.gz", [TASK, FBP], {"data.slices": 4}, folder / "out")
    calls: list[list[str]] = []
    monkeypatch.setattr(benchmark, "run", lambda command: calls.append(command) or 0)
    job.start()
    torch.save({"fingerprint": job.fingerprint}, folder / "out" / "last.ckpt")
    job.start()
    job.settings["data.slices"] = 5
    job.start()
    job.start()  # nor when it was interrupted before it had a checkpoint of its own
    torch.save({}, folder / "out" / "last.ckpt")
    job.start()
    (folder / "out" / "last.ckpt").write_bytes(b"truncated")
    job.start()
    checkpoint = ["--ckpt_path", str(folder / "out" / "last.ckpt")]
    assert [call[-2:] == checkpoint for call in calls] == [False, True, False, False, False, False]


def test_a_signal_is_passed_on_and_ends_the_benchmark(folder, phantom_volume, monkeypatch, capfd):
    """The process that it is passed to ends with exit code 0, as if it had just finished."""
    script = (
        "import os, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getppid(), signal.SIGTERM); time.sleep(30)"
    )
    monkeypatch.setattr(benchmark.Job, "start", lambda job: benchmark.run([sys.executable, "-c", script]))
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["--tasks", str(TASK), "--methods", str(FBP), str(TV), "--volumes", str(phantom_volume)]
    assert benchmark.main(arguments) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().out.count("running") == 1


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


def test_fingerprint_has_the_content_of_configs_and_of_the_volume(folder):
    sampler, config, volume = folder / "sampler.yaml", folder / "method.yaml", folder / "a.nii.gz"
    sampler.write_text("model: {sampler: {steps: 3}}\n")
    config.write_text("config: sampler.yaml\nmethod: a\n")
    volume.write_bytes(b"one")
    [job] = benchmark.plan([TASK], [config], [volume], {}, folder / "out")
    before = job.fingerprint
    assert difference(before, job.fingerprint) is None
    sampler.write_text("model: {sampler: {steps: 4}}\n")
    assert difference(before, job.fingerprint) == "model.sampler.steps 3, now it is 4"
    sampler.write_text("model: {sampler: {steps: 3}}\n")
    volume.write_bytes(b"two")
    assert re.match(r"the contents of data.path \w+, now it is \w+", difference(before, job.fingerprint))


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


def test_results_of_other_settings_or_another_volume_are_not_passed_off_as_finished(folder, monkeypatch):
    method, volume = folder / "method.yaml", folder / "phantom.nii.gz"
    method.write_text("method: m\nmodel: DirectInverse\n")
    volume.write_bytes(b"one")
    [job] = benchmark.plan([TASK], [method], [volume], {}, folder / "out")
    done = job.folder / "phantom"
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    (job.folder / "run.json").write_text(json.dumps(job.fingerprint))
    assert job.is_done()
    volume.write_bytes(b"two")
    assert not job.is_done()
    volume.write_bytes(b"one")
    assert job.is_done()
    method.write_text("method: m\nmodel: TotalVariation\n")
    assert not job.is_done()
    monkeypatch.setattr(benchmark, "run", lambda _: 2)  # it fails
    assert job.start() == 2
    assert not job.is_done()


def test_predictions_below_the_output_are_left_out_of_the_table(folder):
    path = folder / "sv_ct/x/dds/x"
    path.mkdir(parents=True)
    (path / "metrics.json").write_text('{"task": "sv_ct", "method": "dds", "seconds": 1}')
    (path / "trajectory.csv").write_text("step,residual\n1,0.5\n")
    assert read_tests(folder, ["dds"]) == []
