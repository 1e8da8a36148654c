"""The one exception that the command line turns into a line of text and exit code 2."""

import argparse
import re
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


def parser_reason(message: str) -> str:
    """An error message of jsonargparse in one line, with the full path of the setting."""
    line = re.sub(r"Problem with given class_path '[^']*': ", "", " ".join(message.split()))
    line = line.replace('": Parser key "', ".")
    line = re.sub(r"Group '([\w.]+)' does not accept option '(\w+)'", r"Option '\1.\2' is not accepted", line)
    if missing := re.fullmatch(r'Parser key "([\w.]+)": the following arguments are required: (.*)', line):
        return f"the following arguments are required: {missing[1]}.{missing[2].replace(', ', f', {missing[1]}.')}"
    return line


def bad_input(error: BaseException | None) -> str | None:
    """The message of the `InputError` that caused an error, in one line, or None if no `InputError` did.

    Parsers wrap the errors that constructors raise, so this searches the chain of causes.
    """
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return None if error is None else " ".join(str(error).split())
