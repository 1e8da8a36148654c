"""The dashboard that would be sent to W&B."""

from typing import Any

import pytest
import yaml
from helpers import CONFIGS

pytest.importorskip("wandb_workspaces")
from ddip_pl.cli import workspace
from ddip_pl.errors import InputError

SWEEPS = CONFIGS / "sweep"


@pytest.fixture
def view() -> dict[str, Any]:
    return workspace.workspace("somebody", "ddip-pl")._to_model().model_dump(by_alias=True, exclude_none=True)


def panels(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in view["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_it_belongs_to_the_project(view):
    assert (view["entity"], view["project"], view["displayName"]) == ("somebody", "ddip-pl", "Reconstructions")


def test_quality_is_shown_against_what_the_sweeps_vary(view):
    x = {panel["config"].get("xAxis", "") for panel in panels(view)}
    for name in ("k", "inner_steps", "learning_rate", "rank", "views"):
        varied = next(iter(yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["parameters"]))
        first, *rest = varied.split(".")
        place = [first, "value", *(() if rest[0] == "init_args" else ("init_args",)), *rest]
        assert f"config:{'.'.join(place)}" in x
    assert "summary:seconds" in x


def test_residual_and_images_are_shown_by_method(view):
    by_figure = {
        panel["config"]["metrics"][0]: panel["config"] for panel in panels(view) if "metrics" in panel["config"]
    }
    residual = by_figure["diffusion/residual"]
    assert (residual["xAxis"], residual["groupBy"]) == ("trainer/global_step", "method.value")
    media = [key for panel in panels(view) for key in panel["config"].get("mediaKeys", [])]
    assert media == ["planes", "images/x0_hat", "images/estimate"]


def test_it_is_saved_to_the_project_that_was_named(monkeypatch, capsys):
    class Saved:
        url = "https://example.org/somebody/ddip-pl"

    monkeypatch.setattr(workspace.ws.Workspace, "save", lambda self: Saved if self.entity == "somebody" else None)
    workspace.main(["somebody/ddip-pl"])
    assert capsys.readouterr().out == f"{Saved.url}\n"


@pytest.mark.parametrize("project", ["ddip-pl", "/ddip-pl", "somebody/", "a/b/c"])
def test_other_names_are_refused(project):
    with pytest.raises(InputError, match="ENTITY/PROJECT"):
        workspace.main([project])
