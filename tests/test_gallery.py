"""The programs of docs/gallery.md run and make its pictures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

FOLDER = ROOT / "examples" / "gallery"
PROGRAMS = [path.stem for path in sorted(FOLDER.glob("*.py")) if path.stem != "head"]
QUICK = {"own_sinogram", "read_a_sweep"}


def ink(path: Path) -> np.ndarray:
    """The ink of a picture at a tenth of its size, 0 (white) .. 1: fonts and antialiasing hardly count."""
    with Image.open(path) as image:
        return 1 - np.asarray(image.convert("L").resize((image.width // 10, image.height // 10)), float) / 255


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PROGRAMS]
)
def test_program_makes_its_picture(name: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # programs call ddip-pl
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    subprocess.run([sys.executable, FOLDER / f"{name}.py"], check=True, timeout=600, cwd=tmp_path, env=environment)
    made, shown = ink(tmp_path / f"{name}.png"), ink(ROOT / "docs" / "gallery" / f"{name}.png")
    assert made.shape == shown.shape
    assert np.abs(made - shown).mean() < 0.1 * shown.mean()  # the sweep's picture is white but for 3 %


def test_page_has_all_programs() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert sorted(re.findall(r'--8<-- "examples/gallery/(\w+)\.py"', page)) == sorted([*PROGRAMS, "head"])
    assert sorted(re.findall(r"\(gallery/(\w+)\.png\)", page)) == PROGRAMS
