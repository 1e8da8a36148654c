"""The one exception that the command line turns into a line of text and exit code 2."""

import argparse
import re
from typing import NoReturn


class InputError(ValueError):
    """Bad input: one line saying what was given, what was expected and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves the lines of its description as they are."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def reason(error: Exception) -> str:
    """What an exception of somebody else says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def parser_reason(message: str) -> str:
    """What jsonargparse says of a setting, in one line that names it by its whole path."""
    line = re.sub(r"Problem with given class_path '[^']*': ", "", " ".join(message.split()))
    line = line.replace('": Parser key "', ".")
    line = re.sub(r"Group '([\w.]+)' does not accept option '(\w+)'", r"Option '\1.\2' is not accepted", line)
    if missing := re.fullmatch(r'Parser key "([\w.]+)": the following arguments are required: (.*)', line):
        return f"the following arguments are required: {missing[1]}.{missing[2].replace(', ', f', {missing[1]}.')}"
    return line


def bad_input(error: BaseException | None) -> str | None:
    """The bad input that an error comes from, in one line, or None if it comes from something else.

    Parsers wrap what the constructors that they call raise, hence the search for the cause.
    """
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return None if error is None else " ".join(str(error).split())
