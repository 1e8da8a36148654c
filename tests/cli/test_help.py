"""What the command line says about itself: help, version, completion in a shell."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from helpers import ROOT

from ddip_pl import cli
from ddip_pl.callbacks.wandb import WandbMode
from ddip_pl.cli import source
from ddip_pl.cli.help import ADAPTATIONS, BASELINES, ESTIMATORS, OTHERS, pages
from ddip_pl.cli.usage import PLAIN, WANDB


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `ddip-pl` in this process; returns exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddip-pl", *arguments])
        capsys.readouterr()
        try:
            code = cli.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_usage(run, arguments):
    code, out, error = run(*arguments)
    assert (code, error) == (0, "")
    commands = ("test", "predict", "simulate", "benchmark", "compare", "demo", "fit", "validate")
    assert all(f"\n  {command} " in out for command in commands)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("test", ("--data.path", "--data.sigma_y", "--data.slices", "--model.prior", "--output", "--ckpt_path")),
        ("predict", ("--data.path", "--model.estimator", "--model.adaptation", "--seed_everything")),
        ("fit", ("--model.network.image_size", "--data.variant", "--trainer.max_steps")),
        ("validate", ("--model.network", "--data.validation_size")),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "--help_all"])
def test_help_of_a_command(run, monkeypatch, command, options, flag):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, error = run(command, flag)
    assert (code, error) == (0, "")
    assert [option for option in options if option not in out] == []
    assert ("--trainer.max_time" in out) == (flag == "--help_all")
    assert max(map(len, out.splitlines())) <= 120 or flag == "--help_all"


@pytest.mark.parametrize("command", ["test", "predict", "fit", "validate"])
def test_help_has_a_text_for_every_option(command):
    options = {name: text for page in pages(command).values() for name, text in page.items()}
    assert len(options) > 20
    assert [name for name, text in options.items() if not re.match(r"[^\[\s]", text)] == []


@pytest.mark.parametrize("command", PLAIN)
def test_help_of_a_command_without_configs(run, command):
    code, out, error = run(command, "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"usage: ddip-pl {command} ")


def test_version(run):
    assert run("--version") == (0, f"ddip-pl {version('ddip-pl')}\n", "")


def test_help_describes_the_classes_as_they_are():
    """What the source code says is what Python sees, once it is imported."""
    for name in (*ESTIMATORS, *ADAPTATIONS, *BASELINES, *OTHERS):
        made = getattr(import_module(".".join(source.file(name).relative_to(ROOT).with_suffix("").parts)), name)
        signature = {
            key: one for key, one in inspect.signature(made).parameters.items() if one.kind is not one.VAR_KEYWORD
        }
        assert source.docstring(name) == inspect.getdoc(made), name
        described = source.arguments(name)
        assert list(described) == list(signature)
        for key, default in described.items():
            assert default in ("", str(signature[key].default)), (name, key)
    assert source.arguments("DDS") == {"iterations": "30", "gamma": "noise", "spread": "2.0"}


def test_wandb_has_the_same_modes_everywhere():
    assert set(get_args(WandbMode)) == set(WANDB)


def completed(script: Path, *words: str) -> list[str]:
    """What bash proposes for the last word."""
    code = """source "$0"; words=("$@"); COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1))
    function=$(complete -p ddip-pl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $function; printf '%s\\n' "${COMPREPLY[@]}" """
    done = subprocess.run(["bash", "-c", code, script, "ddip-pl", *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_completion_in_a_shell(run, tmp_path):
    pytest.importorskip("shtab", reason="shtab is not installed")
    code, out, error = run("completion", "bash")
    assert (code, error) == (0, "")
    script = tmp_path / "completion"
    script.write_text(out)
    assert completed(script, "pre") == ["predict"]
    assert completed(script, "test", "--config", "sv") == ["sv_ct", "sv_ct_noisy"]
    assert completed(script, "predict", "--data.volume.rep") == ["--data.volume.repetition"]
    assert completed(script, "benchmark", "--vol") == ["--volumes"]
    code, out, error = run("completion", "zsh")
    assert (code, error) == (0, "")
    assert out.startswith("#compdef ddip-pl")


def test_completion_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run("completion", "bash")[::2] == (
        2, "ddip-pl: error: completion needs a package that is missing; pip install 'ddip-pl[completion]'\n",
    )  # fmt: skip
