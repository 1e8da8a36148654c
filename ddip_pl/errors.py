"""The one exception that the command line turns into a line of text and exit code 2."""

import argparse
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


def bad_input(error: BaseException | None) -> str | None:
    """The bad input that an error comes from, in one line, or None if it comes from something else.

    Parsers wrap what the constructors that they call raise, hence the search for the cause.
    """
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return None if error is None else " ".join(str(error).split())
