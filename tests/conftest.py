"""Small things that many tests need."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from ddip_pl.data.ellipses import RandomEllipses, phantoms
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.prior.unet import UNet, UNetConfig

SHARED = Path(__file__).parents[2] / "shared"


def make_network(**settings: object) -> UNet:
    """An untrained network in which no layer is zero, so that every weight matters."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{"image_size": 32, "channel_mult": (1, 1), "attention_resolutions": (16,)} | settings))
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


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


def save_phantoms(path: Path, slices: int) -> Path:
    """NIfTI file with axial slices of 32x28 pixels, 2 x 2 x 3 mm, values -1000 .. 1000; one ellipse less in each."""
    ellipses = torch.from_numpy(RandomEllipses(1, 5, "uniform")[0]["ellipses"])
    images = torch.cat([phantoms(ellipses[None, i:], 32) for i in range(slices)])[:, 0, :, 2:-2]
    data = (images.permute(2, 1, 0).numpy() * 2000 - 1000).astype(np.float32).transpose(1, 0, 2)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0])), path)
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
