"""What several test files use."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from lightning import Callback, Trainer
from torch import nn

from ddip_pl.data.phantoms import RandomEllipses, phantoms
from ddip_pl.prior.unet import UNet, UNetConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"

# Arguments of the command line.
TASK = ("--config", f"{CONFIGS}/task/sv_ct.yaml")
DDS = (*TASK, "--config", f"{CONFIGS}/method/dds.yaml", "--model.steps", "2", "--model.start", "500")
D3IP = (
    *TASK, "--config", f"{CONFIGS}/method/d3ip.yaml", "--model.steps", "2", "--model.start", "500",
    "--model.adaptation.init_args.slices", "2", "--model.adaptation.init_args.steps", "1",
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
    """NIfTI file with axial slices of 32x28 pixels, 2 x 2 x 3 mm, values -1000 .. 1000; one ellipse less in each."""
    ellipses = torch.from_numpy(RandomEllipses(1, 5, "uniform")[0]["ellipses"])
    images = torch.cat([phantoms(ellipses[None, i:], 32) for i in range(slices)])[:, 0, :, 2:-2]
    data = (images.permute(2, 1, 0).numpy() * 2000 - 1000).astype(np.float32).transpose(1, 0, 2)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def quiet_trainer(*callbacks: Callback) -> Trainer:
    """Lightning's own Trainer, without files and output."""
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
