"""Training of the prior: predict the noise in a diffused phantom."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback, ThroughputMonitor
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ddip_pl.prior.checkpoint import describe
from ddip_pl.prior.schedule import STEPS, ddim_step, diffuse, noise_schedule, timesteps, tweedie
from ddip_pl.prior.unet import UNet, UNetConfig

VALIDATION_TIMESTEPS = (50, 200, 500, 800)


class DiffusionPrior(LightningModule):
    """Noise prediction, `|| e - eps_theta(sqrt(abar) x + sqrt(1 - abar) e, t) ||^2` for all t alike (Ho et al. 2020).

    Args:
        network: settings of the U-Net.
        learning_rate: of Adam, reached after `warmup_steps` and lowered to zero along a cosine until training ends.
    """

    flops_per_batch: int | None = None  # ThroughputMonitor asks for it; they are not counted

    def __init__(self, network: UNetConfig, learning_rate: float = 5e-4, warmup_steps: int = 200):
        super().__init__()
        self.network = UNet(network)
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.abar: Tensor
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def loss(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the predicted noise for images `x (batch, channels, height, width)` at `t (batch,)`."""
        x_t = diffuse(x, noise, self.abar[t].view(-1, 1, 1, 1))
        return F.mse_loss(self.network(x_t, t)[:, : x.shape[1]], noise)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        # Drawn from the step and not from a running state, so that a resumed run draws what an uninterrupted one does.
        seed = np.random.SeedSequence((torch.initial_seed(), self.global_step, self.global_rank))
        random = torch.Generator(x.device).manual_seed(int(seed.generate_state(1)[0]))
        t = torch.randint(STEPS, (len(x),), device=x.device, generator=random)
        loss = self.loss(x, t, torch.randn(x.shape, device=x.device, generator=random))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """The same noise on the same phantoms every time, so that the figures of a run can be compared."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(batch_idx)).to(x)
        losses = {t: self.loss(x, torch.full((len(x),), t, device=x.device), noise) for t in VALIDATION_TIMESTEPS}
        self.log_dict({f"val/loss_t{t}": loss for t, loss in losses.items()})
        self.log("val/loss", torch.stack(list(losses.values())).mean(), prog_bar=True)

    @torch.no_grad()
    def sample(self, noise: Tensor, steps: int = 50) -> Tensor:
        """Unconditional samples, of the shape of `noise`, by deterministic DDIM, means clipped to [0, 1]."""
        x = noise
        darkest = 0 if x.shape[1] == 1 else -1
        abar_end = self.abar.new_ones(())
        ts = timesteps(STEPS - 1, steps)
        for t, t_next in zip(ts, [*ts[1:], None], strict=True):
            eps = self.network(x, x.new_full((len(x),), t))[:, : x.shape[1]]
            mean = tweedie(x, eps, self.abar[t]).clamp(darkest, 1)
            eps = (x - self.abar[t].sqrt() * mean) / (1 - self.abar[t]).sqrt()
            abar_next = abar_end if t_next is None else self.abar[t_next]
            x = ddim_step(mean, eps, noise, abar_next, eta=0)
        return x

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=self.warmup_steps)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - self.warmup_steps))
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [self.warmup_steps])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        return [ThroughputMonitor(batch_size_fn=len)] if self.trainer.loggers else []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prior"] = describe(self.network)
