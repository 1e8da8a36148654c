"""Classes as their source code describes them, read without importing it, which would import PyTorch."""

import ast
import re
from functools import cache
from pathlib import Path

from docstring_parser import parse

from ddip_pl.methods.configs import PACKAGE


@cache
def file(name: str) -> Path:
    """The file that defines a class of this package."""
    return next(
        path for path in PACKAGE.rglob("*.py") if re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE)
    )


@cache
def definition(name: str) -> ast.ClassDef:
    """The definition of a class of this package."""
    body = ast.parse(file(name).read_text()).body
    return next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)


def docstring(name: str) -> str:
    """The docstring of a class, without its indentation."""
    return ast.get_docstring(definition(name)) or ""


def arguments(name: str) -> dict[str, str]:
    """Arguments of a class's constructor, or the fields of a dataclass; each with its default if that is a constant."""
    body = definition(name).body
    init = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if init is None:
        fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        found = {node.target.id: node.value for node in fields if isinstance(node.target, ast.Name)}
    else:
        names = [argument.arg for argument in init.args.args[1:]]
        given: list[ast.expr | None] = [*init.args.defaults]
        found = dict(zip(names, [*[None] * (len(names) - len(given)), *given], strict=True))
    return {name: constant(default) for name, default in found.items()}


def constant(default: ast.expr | None) -> str:
    """A constant as text; empty for None and for what must be computed."""
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:
        return ""
    return "" if value is None else str(value)


def settings(prefix: str, *classes: str) -> dict[str, str]:
    """Options for the arguments of classes, with their descriptions from the docstrings and their defaults."""
    options = {}
    for made in classes:
        described = {p.arg_name.strip("*"): p.description for p in parse(docstring(made)).params}
        for name, default in arguments(made).items():
            text = " ".join((described.get(name) or "").split())
            options[f"{prefix}.{name}"] = text + (f" [{default}]" if default else "")
    return options


def choices(*classes: str) -> dict[str, str]:
    """The first paragraph of each class's docstring."""
    return {made: docstring(made).split("\n\n")[0].replace("\n", " ") for made in classes}
