"""Damaged and hostile files: whatever is in a file, reading it gives data or one `InputError`.

`make fuzz` runs many more cases, with a limit on time and memory.
"""

import pytest
from fuzz.cases import run
from fuzz.formats import FORMATS

CASES = 30  # of each format


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_gives_data(name, tmp_path):
    cases = CASES // 5 if name == "settings" else CASES
    outcomes = set()
    for seed in range(cases):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes.add(run(name, seed, folder))
    assert "refused" in outcomes
