"""Layers of the package: a folder imports only the folders below it, so there are no circular imports."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

# From the lowest layer up.
ROOMS = (
    "errors", "settings", "report", "solvers", "prior", "physics", "volumes", "estimators", "evaluation", "scans",
    "adaptation", "data", "results", "reconstruction", "baselines", "callbacks", "methods", "cli",
)  # fmt: skip
FILES = sorted((ROOT / "ddip_pl").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("ddip_pl.")}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place() -> None:
    packages = {path.parent.name for path in FILES if path.parent.parent.name == "ddip_pl"}
    assert packages | {"errors", "settings"} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT / "ddip_pl").with_suffix("").parts
    if parts == ("__init__",):
        assert imported(path) == set()
        return
    floor = ROOMS.index(parts[0])
    assert {name for name in imported(path) if ROOMS.index(room(name)) > floor} == set()


def test_modules_of_a_room_import_each_other_without_a_circle() -> None:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    graph = {names[path]: imported(path) for path in FILES}
    while graph:
        leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in leaves}
