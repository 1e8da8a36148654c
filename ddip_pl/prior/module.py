"""Training of the prior: predict the noise in diffused phantoms."""

from typing import Annotated, Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ThroughputMonitor
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ddip_pl.prior.checkpoint import describe, load_prior
from ddip_pl.prior.schedule import STEPS, ddim_step, diffuse, noise_schedule, timesteps, tweedie
from ddip_pl.prior.unet import UNet, UNetConfig
from ddip_pl.settings import LearningRate, NonNegativeInt, Power, Range, checked

VALIDATION_TIMESTEPS = (20, 50, 100, 200, 400, 600, 800)


@checked
class DiffusionPrior(LightningModule):
    """Noise prediction, `w(t) || e - eps_theta(sqrt(abar) x + sqrt(1 - abar) e, t) ||^2` (Ho et al. 2020).

    Args:
        network: settings of the U-Net.
        learning_rate: of Adam, reached after `warmup_steps`, then lowered along a cosine to zero at the end.
        warmup_steps: number of steps in which the learning rate rises linearly.
        weighting: p in `w(t) = ((1 - abar) / abar)^p`: 0 weights errors in the noise equally for all t, 1 errors in the
            image.
        focus: timesteps are drawn as `1000 u^focus`, u uniform: 1 draws all equally often, a larger value favours
            small ones.
        prior: file of a prior to start from; layers whose shape differs are trained from scratch.

    Raises:
        InputError: a setting is out of range, or the prior cannot be read.
    """

    flops_per_batch: int | None = None  # read by ThroughputMonitor; not counted here

    def __init__(
        self,
        network: UNetConfig,
        learning_rate: LearningRate = 5e-4,
        warmup_steps: NonNegativeInt = 200,
        weighting: Annotated[float, Range(0, 2)] = 0.0,
        focus: Power = 1.0,
        prior: str | None = None,
    ):
        super().__init__()
        self.network = UNet(network)
        if prior is not None:
            own = self.network.state_dict()
            known = load_prior(prior).state_dict()
            fitting = {name: w for name, w in known.items() if name in own and own[name].shape == w.shape}
            self.network.load_state_dict(fitting, strict=False)
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.weighting, self.focus = weighting, focus
        self.abar: Tensor
        self.register_buffer("abar", noise_schedule(), persistent=False)

    def loss(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the predicted noise, `(batch,)`, for images `x (batch, channels, height, width)`."""
        x_t = diffuse(x, noise, self.abar[t].view(-1, 1, 1, 1))
        return (self.network(x_t, t)[:, : x.shape[1]] - noise).square().mean((1, 2, 3))

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        # Seeded by the step, so that a resumed run draws the same numbers as an uninterrupted one.
        seed = np.random.SeedSequence((torch.initial_seed(), self.global_step, self.global_rank))
        random = torch.Generator(x.device).manual_seed(int(seed.generate_state(1)[0]))
        t = (STEPS * torch.rand(len(x), device=x.device, generator=random) ** self.focus).long().clamp(max=STEPS - 1)
        loss = self.loss(x, t, torch.randn(x.shape, device=x.device, generator=random))
        self.log("train/loss", loss.mean(), prog_bar=True)
        return (((1 - self.abar[t]) / self.abar[t]) ** self.weighting * loss).mean()

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Validate with the same noise on the same phantoms every time, so that losses are comparable."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(batch_idx)).to(x)
        every = {t: torch.full((len(x),), t, device=x.device) for t in VALIDATION_TIMESTEPS}
        losses = {t: self.loss(x, every[t], noise).mean() for t in every}
        self.log_dict({f"val/loss_t{t}": loss for t, loss in losses.items()})
        self.log("val/loss", torch.stack(list(losses.values())).mean(), prog_bar=True)

    @torch.no_grad()
    def sample(self, noise: Tensor, steps: int = 50, eta: float = 0.85) -> Tensor:
        """Unconditional samples by DDIM from `noise`, with its shape.

        Means are clipped to [0, 1] ([-1, 1] for complex images). The fresh noise, the same in every call, corrects
        errors of the network; without it (`eta` 0), a small network leaves speckle.
        """
        x, random = noise, torch.Generator(noise.device).manual_seed(0)
        darkest = 0 if x.shape[1] == 1 else -1
        abar_end = self.abar.new_ones(())
        ts = timesteps(STEPS - 1, steps)
        for t, t_next in zip(ts, [*ts[1:], None], strict=True):
            eps = self.network(x, x.new_full((len(x),), t))[:, : x.shape[1]]
            mean = tweedie(x, eps, self.abar[t]).clamp(darkest, 1)
            eps = (x - self.abar[t].sqrt() * mean) / (1 - self.abar[t]).sqrt()
            abar_next = abar_end if t_next is None else self.abar[t_next]
            fresh = torch.randn(x.shape, device=x.device, generator=random)
            x = ddim_step(mean, eps, fresh, abar_next, eta)
        return x

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=self.warmup_steps)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - self.warmup_steps))
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [self.warmup_steps])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        return [ThroughputMonitor(batch_size_fn=len), LearningRateMonitor("step")] if self.trainer.loggers else []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before clipping."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prior"] = describe(self.network)
