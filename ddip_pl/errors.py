"""The one exception that the command line turns into a line of text and exit code 2."""


class InputError(ValueError):
    """Bad input: one line saying what was given, what was expected and what to do."""


def reason(error: Exception) -> str:
    """What an exception of somebody else says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
