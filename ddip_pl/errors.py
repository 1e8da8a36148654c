"""The one exception that the command line turns into a line of text and exit code 2."""

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import shorten
from typing import NoReturn


class InputError(ValueError):
    """Bad input. The message is one line: what was given, what was expected and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """Reports errors in one line and keeps the line breaks of its description."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def reason(error: Exception) -> str:
    """The message of another library's exception, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the one or two most similar known ones, if there are any."""
    similar = get_close_matches(word, sorted(known), 2, 0.75)
    return f"; did you mean {' or '.join(similar)}?" if similar and word not in similar else ""


def parser_reason(message: str, known: Iterable[str] = ()) -> str:
    """An error message of jsonargparse in one short line: the full path of the setting, then what is wrong with it.

    Args:
        message: lists an error for every type that the setting may have; errors of nested settings are inside it.
        known: names of settings and classes, to suggest instead of unknown ones.
    """
    line = re.sub(r"Problem with given class_path '[^']*': ", "", " ".join(message.split()))
    if denied := re.search(r"Importing '([\w.]+)\.(\w+)' is not allowed", line):
        return f"{denied[1]}.{denied[2]} is from another package; if you trust it, add --plugins {denied[1]}"
    before, *levels = re.split(r"(?:Errors: )?(?:- )?Parser key \"([\w.]+)\": ", line)
    before, innermost = (before, levels[-1]) if levels else ("", line)
    key = ".".join(levels[0::2])
    unknown = re.search(r"(?:Group '(?P<group>[\w.]+)' does not accept o|O)ption '(?P<name>[\w.]+)'", innermost)
    if unknown := unknown or re.search(r"unrecognized arguments: --(?P<name>[\w.]+)(?P<group>)", innermost):
        setting = ".".join(filter(None, (key, unknown["group"], unknown["name"])))
        return f"{before}no setting {setting}{did_you_mean(setting.split('.')[-1], known)}"
    if missing := re.match(r"the following arguments are required: (.*)", innermost):
        return f"the following arguments are required: {f'{key}.'.lstrip('.')}{missing[1].replace(', ', f', {key}.')}"
    if unknown := re.search(r"Expected a dot import path string: (\w*)|has no attribute '(\w+)'", innermost):
        name = unknown[1] or unknown[2]
        return f"{before}{key}: {name} is none of its classes{did_you_mean(name, known)}"
    given = re.search(r"(?:Got|Given) value: (.*?)(?: - Expected| Given value|$)", innermost)
    kinds = re.findall(r"Expected an? (.+?)(?=\.? - |\.? Got value| Given value)", innermost)
    if given and kinds:
        wanted = " or ".join(dict.fromkeys(KINDS.get(kind, plain(kind)) for kind in kinds if "path but" not in kind))
        return f"{before}{key} is {shorten(given[1], 60)}; expected {wanted}"
    return shorten(f"{before}{key}: {innermost}" if key else line, 180)


KINDS = {
    "<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'str'>": "text",
    "<class 'bool'>": "true or false", "<class 'NoneType'>": "null", "<class 'collections.abc.Sequence'>": "a list",
}  # fmt: skip


def plain(kind: str) -> str:
    """What a type allows, from a message of jsonargparse."""
    if kind.startswith("typing.Literal"):
        return kind.removeprefix("typing.Literal[").removesuffix("]").replace("'", "").replace(", ", " or ")
    return re.sub(r"tuple with (\d+) elements", r"\1 values", re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind))


def bad_input(error: BaseException | None) -> str | None:
    """The message of the `InputError` that caused an error, in one line, or None if no `InputError` did.

    Parsers wrap the errors that constructors raise, so this searches the chain of causes.
    """
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return None if error is None else " ".join(str(error).split())
