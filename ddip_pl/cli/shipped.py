"""The configs that come with the package, found from any folder."""

from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line in which `configs/...` is the package's own file, unless there is one here."""
    folders = PACKAGE, PACKAGE.parent  # installed; in a checkout
    found = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        if value.startswith("configs/") and not Path(value).exists():
            own = [folder / value for folder in folders if (folder / value).is_file()]
            value = str(own[0]) if own else value
        found.append(option + equals + value)
    return found
