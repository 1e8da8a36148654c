"""The locked requirements of the container images: the tested versions, all of them, with hashes."""

import re
import tomllib

from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKER = ROOT / "docker"


def pinned(*files: str) -> dict[str, str]:
    """Versions by name."""
    text = "".join((ROOT / file).read_text() for file in files)
    return {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, flags=re.M)
    }


TESTED = pinned("constraints.txt")
LOCKED = pinned("docker/requirements.txt", "docker/torch-cuda.txt")


def test_locked_versions_are_the_tested_ones() -> None:
    both = TESTED.keys() & LOCKED.keys()
    assert len(both) > 80
    assert {name: LOCKED[name] for name in both} == {name: TESTED[name] for name in both}
    for name in LOCKED.keys() - TESTED.keys():  # what PyTorch and astra-toolbox need for CUDA is not tested on a CPU
        assert re.match("nvidia-|cuda-|triton$|setuptools$", name), f"{name} is not in constraints.txt"


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        needed = Requirement(text)
        assert LOCKED[canonicalize_name(needed.name)] in needed.specifier, text


def test_every_file_has_a_hash_and_no_host() -> None:
    for name in ("requirements.txt", "torch-cuda.txt"):
        entries = re.split(r"\n(?=\w)", (DOCKER / name).read_text().strip())
        assert all("--hash=sha256:" in entry for entry in entries)
        assert "://" not in (DOCKER / name).read_text()
