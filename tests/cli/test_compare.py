"""`ddip-pl compare`: finished runs side by side."""

import csv
import json
import sys
from pathlib import Path

import pytest

from ddip_pl import cli
from ddip_pl.results.folder import write_table
from ddip_pl.results.plots import curves
from ddip_pl.results.tables import by_subject, read_runs

DDS, TV = {"psnr": 33.456, "ssim": 0.91}, {"psnr": 31.2, "ssim": 0.92}


def save_run(folder: Path, method: str, figures: dict[str, float], task: str = "sv_ct", volume: str = "head") -> Path:
    """Write a run's folder with the files that a comparison reads."""
    path = folder / volume
    path.mkdir(parents=True)
    known = {"task": task, "method": method, "seconds": 12.34, "residual": 1e-3, "peak_memory_bytes": 5e8}
    (path / "metrics.json").write_text(json.dumps(known | figures))
    write_table(path / "trajectory.csv", [{"step": i + 1, "residual": 0.1 / (i + 1)} for i in range(4)])
    if "psnr" in figures:
        write_table(path / "slices.csv", [{"slice": i, "psnr": figures["psnr"] + i, "ssim": 0.9} for i in range(3)])
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddip-pl", "compare", *map(str, arguments)])
        return cli.main(), *capsys.readouterr()

    return call


def test_table_csv_and_curves(run, tmp_path):
    runs = [save_run(tmp_path / "a", "dds", DDS), save_run(tmp_path / "b", "admm_tv", TV)]
    code, out, error = run(*runs)
    assert (code, error) == (0, "")
    assert [line.split()[:2] for line in out.splitlines() if " dB" in line] == [["dds", "33.46"], ["admm_tv", "31.20"]]
    with Path("outputs/compare/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["psnr"]), row["folder"]) for row in rows] == [
        ("dds", 33.456, f"{runs[0]}/head"),
        ("admm_tv", 31.2, f"{runs[1]}/head"),
    ]
    assert Path("outputs/compare/compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_stands_apart_and_nothing_twice(run, tmp_path):
    save_run(tmp_path / "all/a", "dds", DDS)
    save_run(tmp_path / "all/b", "dds", DDS, task="mri_3d")
    _, out, _ = run(tmp_path / "all", tmp_path / "all/a")
    assert [line.strip() for line in out.splitlines() if line.startswith(("sv_ct", "mri_3d"))] == [
        "mri_3d, head",
        "sv_ct, head",
    ]
    assert out.count("dds ") == 2


@pytest.mark.parametrize("names", [("k=1", "k=6"), ("seed 0/d3ip", "seed 1/d3ip")])
def test_methods_of_one_name_are_told_apart_by_their_folders(tmp_path, names):
    runs = read_runs([save_run(tmp_path / name, "d3ip", DDS) for name in names])
    [(_, rivals)] = by_subject(runs)
    assert list(rivals) == [f"d3ip ({tmp_path / name})" for name in names]


def test_runs_without_reference(run, tmp_path):
    code, out, _ = run(save_run(tmp_path / "a", "dds", {"discrepancy": 1.02}), "--output", tmp_path / "c")
    assert code == 0
    assert "PSNR" not in out
    assert "1.02" in out
    assert (tmp_path / "c/compare.png").is_file()


def test_curves_show_what_the_runs_tell(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curves(
        read_runs([save_run(tmp_path / "a", "dds", DDS), save_run(tmp_path / "b", "admm_tv", TV)]), tmp_path / "x.png"
    )
    quality, residual, slices = drawn[0].axes
    assert [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in quality.lines] == [
        (12.34, 33.456),
        (12.34, 31.2),
    ]
    assert list(residual.lines[0].get_ydata()) == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025])
    assert list(slices.lines[1].get_ydata()) == pytest.approx([31.2, 32.2, 33.2])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: None, "no metrics.json in it"),
        (lambda folder: (save_run(folder, "dds", DDS) / "head/metrics.json").write_text("{"), "cannot be read"),
        (lambda folder: (save_run(folder, "dds", DDS) / "head/metrics.json").write_text("[]"), "cannot be read"),
        (lambda folder: (save_run(folder, "dds", DDS) / "head/metrics.json").write_text("{}"), "cannot be read"),
        (lambda folder: (save_run(folder, "dds", DDS) / "head/trajectory.csv").unlink(), "cannot be read"),
        (lambda folder: (save_run(folder, "dds", DDS) / "head/slices.csv").write_text("a,b\n1,x\n"), "cannot be read"),
    ],
)
def test_bad_input(run, tmp_path, broken, message):
    broken(tmp_path / "a")
    code, _, error = run(tmp_path / "a")
    assert code == 2
    assert error.startswith(f"ddip-pl: error: run {tmp_path}/a")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("outputs").exists()
