"""A small demo: all methods run and are compared."""

import json
import re
from pathlib import Path

import pytest

from ddip_pl.cli.demo import main
from ddip_pl.errors import InputError


def test_demo_reports_all_methods(
    tiny_prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddip_pl.cli.demo.PRIOR", str(tiny_prior))
    main(["--output", str(tmp_path), "--slices", "3", "--steps", "3"])
    printed = capsys.readouterr().out
    metrics = {}
    for name in ("tv", "dds_published_prior", "d3ip-em_published_prior", "dds_wide_prior"):
        metrics[name] = json.loads((tmp_path / name / "mni152_t1" / "metrics.json").read_text())
        assert metrics[name]["slices"] == 3
        assert f"{metrics[name]['psnr']:.2f}" in printed
    assert f"{metrics['tv']['input_psnr']:.2f}" in printed
    assert metrics["d3ip-em_published_prior"]["adapted_parameters"] > 0
    gain = metrics["d3ip-em_published_prior"]["psnr"] - metrics["dds_published_prior"]["psnr"]
    assert f"Adaptation of the published prior to the scan: {gain:+.2f} dB." in printed
    shown = ["FBP", "TV", "DDS, published prior", "D3IP-EM, published prior", "DDS, wide prior"]
    assert re.findall(r'"name": "(.*?)"', (tmp_path / "report.html").read_text()) == shown
    assert (tmp_path / "demo.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slices", "0"], "--slices is 0"),
        (["--nonsense"], "--nonsense"),
        (["--output", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)
