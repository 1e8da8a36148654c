"""Fixtures that many tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import SHARED, make_network, save_phantoms
from hypothesis import settings

from ddip_pl.prior.checkpoint import save_prior

# Hypothesis tries the same examples in every run; --hypothesis-profile random draws new ones.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("test")


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep system matrices and coil maps of the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a 32x32 prior that has learnt nothing."""
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_prior(path, make_network(), card={}, dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def phantom_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slices."""
    return save_phantoms(tmp_path_factory.mktemp("volume") / "phantom.nii.gz", 6)


@pytest.fixture(scope="session")
def thick_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slices, enough to be cut across."""
    return save_phantoms(tmp_path_factory.mktemp("volume") / "thick.nii.gz", 8)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder with real scans and published weights; not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real scans and test vectors at {SHARED}")
    return SHARED
