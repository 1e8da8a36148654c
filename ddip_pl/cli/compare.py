"""`ddip-pl compare`: tables and curves of finished runs."""

from collections.abc import Sequence

from rich.console import Console

from ddip_pl.cli.usage import parser
from ddip_pl.errors import InputError
from ddip_pl.results.plots import curves
from ddip_pl.results.tables import read_runs, tables, write_csv


def main(arguments: Sequence[str]) -> None:
    """Read the runs, print their tables, write a CSV file and curves.

    Raises:
        InputError: a folder has no finished run, or the output cannot be written.
    """
    options = parser("compare").parse_args(list(arguments))
    runs = read_runs(options.runs)
    console = Console()
    console.print(*tables(runs))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        write_csv(runs, options.output / "compare.csv")
        curves(runs, options.output / "compare.png")
    except OSError as error:
        raise InputError(f"output folder {options.output}: cannot be written ({error.strerror})") from error
    console.print(f"table and curves in {options.output}")
