"""A CSV file that grows by a row at a time, so that a command that is repeated goes on where it ended."""

import csv
from pathlib import Path

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Rows of the file; none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, columns: list[str], row: Row) -> None:
    """Add a row, with empty values for the columns that it lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)
