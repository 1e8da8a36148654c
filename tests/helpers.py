"""Helpers that several test files share."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from ddip_pl.physics import LinearOperator, Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.phantoms import RandomEllipses, phantoms
from ddip_pl.prior.unet import UNet, UNetConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"

# Arguments of the command line.
TASK = ("--config", f"{CONFIGS}/task/sv_ct.yaml")
DDS = (*TASK, "--config", f"{CONFIGS}/method/dds.yaml", "--model.sampler.steps", "2", "--model.sampler.start", "500")
D3IP = (
    *TASK, "--config", f"{CONFIGS}/method/d3ip.yaml", "--model.sampler.steps", "2", "--model.sampler.start", "500",
    "--model.adaptation.init_args.slices", "2", "--model.adaptation.init_args.training.steps", "1",
)  # fmt: skip
FIT = (
    "fit", "--config", f"{CONFIGS}/prior/ellipses_128.yaml", "--model.network.image_size", "16",
    "--model.network.channel_mult", "[1,1]", "--model.network.attention_resolutions", "[8]", "--data.crop", "null",
    "--data.batch_size", "2", "--data.epoch_size", "4", "--data.validation_size", "2",
    "--trainer.max_steps", "2", "--trainer.logger", "false", "--trainer.default_root_dir", "fit",
    "--trainer.callbacks", '[{class_path: ddip_pl.callbacks.prior.ExportPrior, init_args: {path: prior.safetensors}}]',
)  # fmt: skip


def make_network(**settings: object) -> UNet:
    """An untrained network in which no layer is zero, so that every weight matters."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{"image_size": 32, "channel_mult": (1, 1), "attention_resolutions": (16,)} | settings))
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def save_phantoms(path: Path, slices: int) -> Path:
    """Write a NIfTI file of axial slices, 32x28 pixels, 2 x 2 x 3 mm, -1000 .. 1000, one ellipse fewer in each."""
    ellipses = torch.from_numpy(RandomEllipses(1, 5, "uniform")[0]["ellipses"])
    images = torch.cat([phantoms(ellipses[None, i:], 32) for i in range(slices)])[:, 0, :, 2:-2]
    data = (images.permute(2, 1, 0).numpy() * 2000 - 1000).astype(np.float32).transpose(1, 0, 2)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal values, always the same."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def smooth_maps(height: int, width: int, coils: int = 6, slices: int = 1, seed: int = 0) -> Tensor:
    """Random smooth maps `(slices, coils, height, width)`, complex64, different in each slice, not normalised."""
    spectrum = torch.zeros(slices, coils, height, width, dtype=torch.complex64)
    spectrum[..., :3, :3] = random(slices, coils, 3, 3, dtype=torch.complex64, seed=seed)
    return torch.fft.ifft2(spectrum, norm="forward") + 0.3


# Closed forms, for solvers and estimators.


class DenseOperator(LinearOperator):
    """A matrix on images of 4 x 4 pixels, for which everything has a closed form."""

    def __init__(self, matrix: Tensor, slices: int = 3):
        super().__init__((slices, 4, 4))
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).view(-1, 1, 4, 4)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.matrix).T).view(-1, 1, 4, 4)


def dense(rows: int, seed: int = 0) -> DenseOperator:
    matrix = torch.randn(rows, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return DenseOperator(matrix / torch.linalg.matrix_norm(matrix, 2))


def measure(operator: LinearOperator, x: Tensor, sigma_y: float = 1.0) -> Measurement:
    """A noiseless measurement; `sigma_y` only sets the unit of strengths."""
    return Measurement(operator(x), operator, sigma_y)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Known(nn.Module):
    """A network that predicts a tenth of its input as noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.tolist() == [300] * len(x)
        return torch.cat([0.1 * x, x], dim=1)  # a second channel of variances, to be ignored


def tweedies_mean(denoiser: Denoiser, x_t: Tensor) -> Tensor:
    abar = denoiser.abar[300]
    return (x_t - (1 - abar).sqrt() * 0.1 * x_t) / abar.sqrt()


def quiet_trainer(*callbacks: Callback) -> Trainer:
    """Lightning's own Trainer, without files and output."""
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip


def transform(image: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """Centred orthonormal Fourier transform, by NumPy."""
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(image, axes), axes=axes, norm="ortho"), axes)
