"""Shipped methods by name: the same as from the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import CONFIGS
from torch import nn

from ddip_pl import LoraTraining, Sampler, VolumeAdaptation, available_methods, load_method
from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.errors import InputError
from ddip_pl.estimators import DDS
from ddip_pl.methods.configs import SHIPPED, find_configs, with_bases
from ddip_pl.reconstruction import Method


def settings(part: Any) -> Any:
    """The settings of an object of the package, for comparison."""
    if isinstance(part, (str, int, float, tuple, type(None))):
        return part
    if isinstance(part, dict):
        return {name: settings(value) for name, value in part.items()}
    hidden = nn.Module().__dict__ if isinstance(part, nn.Module) else {}
    return {"class": type(part)} | {
        name: settings(value)
        for name, value in vars(part).items()
        if name not in hidden and not name.startswith("_") and not isinstance(value, (nn.Module, torch.Tensor))
    }


def test_available_methods_are_the_shipped_configs() -> None:
    assert available_methods() == sorted(path.stem for path in (CONFIGS / "method").iterdir())
    assert {"dds", "d3ip", "fbp"} <= set(available_methods())


@pytest.mark.parametrize("name", available_methods())
def test_a_method_is_what_the_command_line_makes_of_it(name: str) -> None:
    parser = make_parser("test")
    given = [
        "--config",
        f"{CONFIGS}/task/sv_ct.yaml",
        "--config",
        f"{CONFIGS}/method/{name}.yaml",
        "--data.path",
        "x.nii",
    ]
    chosen = parser.read(given)
    assert chosen.method == name
    method = load_method(name)
    assert isinstance(method, Method)
    assert settings(method) == settings(parser.instantiate(chosen).model)


def test_samplers_are_those_of_the_class() -> None:
    assert load_method("dds").sampler == Sampler()
    for name, sampler in (("default", Sampler()), ("published", Sampler.published())):
        content = yaml.safe_load((CONFIGS / "sampler" / f"{name}.yaml").read_text())
        assert content["model"]["sampler"] == vars(sampler)
    content = yaml.safe_load((CONFIGS / "sampler" / "posterior.yaml").read_text())
    assert vars(Sampler()) | content["model"]["sampler"] == vars(Sampler.posterior())
    assert DDS(**content["model"]["estimator"]["init_args"]).spread == DDS.posterior().spread
    assert content["model"]["samples"] > 1


def test_changes() -> None:
    plain = settings(load_method("d3ip"))
    changes = {"sampler.steps": 20, "adaptation.training.learning_rate": 0.01, "adaptation.slices": 2}
    changed = settings(load_method("d3ip", batch_size=3, **changes))
    expected = plain | {"batch_size": 3, "sampler": plain["sampler"] | {"steps": 20}}
    expected["adaptation"] = plain["adaptation"] | {"slices": 2}
    expected["adaptation"]["training"] = plain["adaptation"]["training"] | {"learning_rate": 0.01}
    assert changed == expected != plain


def test_changes_can_be_objects() -> None:
    adaptation = VolumeAdaptation(slices=1)
    method: Any = load_method("d3ip", estimator=DDS(iterations=7), adaptation=adaptation, sampler=Sampler.published())
    assert (method.estimator.iterations, method.adaptation) == (7, adaptation)
    assert method.sampler == Sampler.published()
    method = load_method("d3ip", **{"adaptation.training": LoraTraining.published()})
    assert method.adaptation.training == LoraTraining.published()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("none", {}, "method 'none': no such method; choose from admm_tv, auto, d3ip,"),
        ("../task/sv_ct", {}, "no such method"),
        ("d3ip", {"nonsense": 1}, "method d3ip: no setting model.nonsense"),
        ("d3ip", {"sampler.nonsense": 1}, "no setting model.sampler.nonsense"),
        ("fbp", {"strength": 1}, "method fbp: no setting model.strength"),
        (
            "d3ip",
            {"sampler.steps": "many"},
            "method d3ip: model.sampler.steps is many; expected a whole number",
        ),
        ("d3ip", {"sampler.spacing": 0}, "spacing is 0"),
        ("d3ip", {"adaptation.slices": 0}, "slices is 0"),
        ("d3ip", {"estimator": "Nothing"}, "Nothing"),
        ("ddip", {"sampler.planes": "all"}, "set model.sampler.planes to slices"),
        ("dds", {"prior": "none.safetensors"}, "prior none.safetensors: no such file"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_method(name, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- files --------------------------------------------------------------------------------------------------


def test_a_config_builds_on_the_ones_it_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "first.yaml").write_text("model: {sampler: {steps: 3, eta: 0.5}, estimator: DDNM}\n")
    (tmp_path / "second.yaml").write_text("config: deep/first.yaml\nmodel: {sampler: {eta: 0}}\n")
    (tmp_path / "third.yaml").write_text("model: {estimator: {iterations: 7}}\n")
    content = (
        "config: [second.yaml, third.yaml]\nmodel: {class_path: ddip_pl.Reconstruction, init_args: {batch_size: 2}}"
    )
    (tmp_path / "last.yaml").write_text(content)
    names = ["deep/first.yaml", "second.yaml", "third.yaml", "last.yaml"]
    assert with_bases(tmp_path / "last.yaml") == [tmp_path / name for name in names]
    for given in (["--config", f"{tmp_path}/last.yaml"], [f"--config={tmp_path}/last.yaml"]):
        chosen = make_parser("test").read(["--config", f"{CONFIGS}/task/sv_ct.yaml", *given, "--data.path", "x.nii"])
        settings = chosen.model.init_args
        assert (settings.sampler.steps, settings.sampler.eta, settings.batch_size) == (3, 0, 2)
        assert settings.estimator.class_path.endswith("DDNM")
        assert settings.estimator.init_args.iterations == 7


def test_a_config_that_builds_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("config: b.yaml\n")
    (tmp_path / "b.yaml").write_text("config: a.yaml\n")
    with pytest.raises(InputError, match="builds on itself"):
        with_bases(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [steps: {\n", "bad.yaml: while parsing"),
        (b"just some text\n", "bad.yaml: no named settings in it"),
        (b"\xff\xfe\x00\x81", "bad.yaml: 'utf-8' codec"),
        (b"config: none.yaml\n", "none.yaml: no such file"),
        (b"config: {a: 1}\n", "bad.yaml: `config` is {'a': 1}; give a file or a list of files"),
    ],
)
def test_config_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(InputError, match="config ") as caught:
        with_bases(tmp_path / "bad.yaml")
    assert message in str(caught.value)


def test_shipped_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--config=configs/task/sv_ct.yaml", "configs/none.yaml", "--output", "configs"]
    assert find_configs(given) == [f"--config={SHIPPED}/task/sv_ct.yaml", *given[1:]]
    (tmp_path / "configs" / "task").mkdir(parents=True)
    (tmp_path / "configs" / "task" / "sv_ct.yaml").touch()
    assert find_configs(given) == given


def test_shipped_configs_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--config", "sv_ct", "--config=d3ip", "--methods", "dds", "fbp", "--output", "dds", "--task=sv_ct"]
    task, method = f"{SHIPPED}/task", f"{SHIPPED}/method"
    assert find_configs(given) == [
        "--config", f"{task}/sv_ct.yaml", f"--config={method}/d3ip.yaml", "--methods", f"{method}/dds.yaml",
        f"{method}/fbp.yaml", *given[6:],
    ]  # fmt: skip
    assert find_configs(["--config", "fast"]) == ["--config", f"{SHIPPED}/sampler/fast.yaml"]
    assert find_configs(["--config", "dps"]) == ["--config", f"{method}/dps.yaml"]  # not the sampler
    assert find_configs(["--config", "none"]) == ["--config", "none"]
    (tmp_path / "sv_ct").touch()
    assert find_configs(given[:2]) == given[:2]
