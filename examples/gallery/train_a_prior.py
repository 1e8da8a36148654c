"""Train a small prior on random ellipses for a minute, and see what it knows by then."""

import numpy as np
import torch
from head import show
from lightning import Trainer, seed_everything

from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.prior.schedule import diffuse
from ddip_pl.prior.unet import UNetConfig

seed_everything(0, verbose=False)
network = UNetConfig(image_size=32, in_channels=1, num_channels=32, channel_mult=(1, 1, 2), attention_resolutions=())
prior = DiffusionPrior(network, learning_rate=1e-3, warmup_steps=20)
data = EllipsesDataModule(image_size=32, batch_size=16)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = Trainer(max_steps=200, limit_val_batches=0, accelerator="cpu", gradient_clip_val=1.0, **quiet)
trainer.fit(prior, data)

phantoms = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[:1]
denoiser, shown = Denoiser(prior.network.eval()), {"truth": phantoms.numpy()}
for t in (20, 100):
    noisy = diffuse(phantoms, torch.randn(phantoms.shape), denoiser.abar[t])
    with torch.no_grad():
        mean, _ = denoiser(noisy, t)
    error = float(np.sqrt(np.mean((mean - phantoms).numpy() ** 2)))
    print(f"t = {t}: error {error:.3f}, noise {denoiser.sigma[t]:.3f}")
    shown |= {f"noisy, t = {t}": noisy.numpy(), f"denoised, t = {t}": mean.numpy()}
show(shown, "train_a_prior.png", brightest=1.0)
