"""D3IP-EM: the prior learns from its own reconstruction of the volume."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import default_collate

from ddip_pl.adaptation.adaptation import Adaptation, Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import AXES, Denoiser
from ddip_pl.prior.phantoms import RandomEllipses, images_of
from ddip_pl.prior.schedule import STEPS, diffuse

ENDLESS = 2**40  # more phantoms than are ever drawn


class SelfTraining(Adaptation):
    """Two trajectories, and between them the prior learns from the volume that the first one reconstructed.

    This is one round of expectation maximisation (Rozet et al. 2024, arXiv 2405.13712).
    The first trajectory reconstructs the volume with the prior as it is (E-step). Then the prior is trained to denoise
    that volume, `E || e - eps_theta(sqrt(abar) x + sqrt(1 - abar) e, t) ||^2` (M-step). The second trajectory starts
    from new noise and gives the result. The loss never sees the measurement, so training cannot fit its noise. Errors
    that both trajectories share are learnt too, and can make the result worse (docs/results/adaptation.md).

    Args:
        steps: gradient steps of the M-step; its cost does not depend on the number of slices.
        learning_rate: of Adam, lowered along a cosine to zero.
        batch: crops per gradient step. They come from all planes that are at least as large, flipped and turned.
        phantoms: share of the batch, rounded down, that is crops of random ellipses, so that the prior does not forget
            them.
        ema: share of the earlier weights in the running average over gradient steps, which sampling uses.
        crop: height and width of a crop in pixels.
        latest: timesteps are drawn uniformly below this; reconstruction needs no larger ones.

    Raises:
        InputError: a setting is out of range.
    """

    trajectories = 2

    def __init__(
        self,
        steps: int = 150,
        learning_rate: float = 1e-4,
        batch: int = 16,
        phantoms: float = 0.25,
        ema: float = 0.99,
        crop: int = 64,
        latest: int = 200,
    ):
        values = {"steps": steps, "learning_rate": learning_rate, "batch": batch, "crop": crop}
        for name, value in values.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{name} of the adaptation is {value}; give a positive number")
        for name, share in {"phantoms": phantoms, "ema": ema}.items():
            if not 0 <= share < 1:
                raise InputError(f"{name} of the adaptation is {share}; give a share of at least 0 and below 1")
        if not 1 <= latest <= STEPS:
            raise InputError(f"latest of the adaptation is {latest}; give a timestep, 1 .. {STEPS}")
        self.steps, self.learning_rate, self.batch, self.phantoms = steps, learning_rate, batch, phantoms
        self.ema, self.crop, self.latest = ema, crop, latest

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        self.denoiser = self.adapted = denoiser
        self.volume: Tensor | None = None
        self.weights: dict[str, Tensor] = {}

    def next_trajectory(self, volume: Tensor) -> None:
        self.volume = volume

    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        if self.volume is None:
            return Adapted(self.adapted, {})
        losses = self.train(self.volume, on_gradient_step)
        self.volume = None
        self.adapted = self.denoiser.with_weights(self.weights)
        few = max(1, self.steps // 5)  # the loss depends on the timesteps drawn, so its mean over a few steps is shown
        figures = {"loss_before": losses[:few].mean().item(), "loss_after": losses[-few:].mean().item()}
        return Adapted(self.adapted, figures)

    @torch.enable_grad()
    def train(self, volume: Tensor, on_gradient_step: OnGradientStep) -> Tensor:
        """The M-step; returns its losses, `(steps,)`."""
        network, abar, losses = self.denoiser.network, self.denoiser.abar, []
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer = torch.optim.Adam(weights.values(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for step in range(self.steps):
            x = self.images(volume)
            t = torch.randint(self.latest, (len(x),)).to(x.device)
            noise = torch.randn(x.shape).to(x)
            x_t = diffuse(x, noise, abar[t].view(-1, 1, 1, 1))
            eps = functional_call(network, weights, (x_t, t))[:, : x.shape[1]]
            loss = (eps - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            kept = min(self.ema, step / (step + 10))  # forgets the untrained weights quickly
            self.weights = {name: new.detach().lerp(self.weights[name], kept) for name, new in weights.items()}
            losses.append(loss.detach())
            on_gradient_step(step + 1, self.steps)
        return torch.stack(losses)

    def images(self, volume: Tensor) -> Tensor:
        """A batch of crops, `(batch, channels, crop, crop)`, smaller if the slices are."""
        size, phantoms = min(self.crop, *volume.shape[2:]), int(self.phantoms * self.batch)
        crops = self.crops(volume, self.batch - phantoms, size)
        if phantoms:
            ellipses = RandomEllipses(ENDLESS, 0, "wide")
            items = default_collate([ellipses[draw(ENDLESS)] for _ in range(phantoms)])
            whole = images_of(items, max(volume.shape[2:]), 2 if volume.shape[1] == 2 else 1).to(volume)
            crops = torch.cat([crops, torch.stack([crop(image[None], size) for image in whole])])
        return crops

    def crops(self, volume: Tensor, count: int, size: int) -> Tensor:
        """Random crops of a volume, `(count, channels, size, size)`, from all planes that are large enough."""
        planes = [self.denoiser.across(plane).cut(volume) for plane in AXES]
        planes = [images for images in planes if min(images.shape[2:]) >= size]
        return torch.stack([crop(planes[draw(len(planes))], size) for _ in range(count)])

    def finish(self) -> AdaptedWeights:
        return AdaptedWeights(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = {name: weight.to(self.denoiser.abar.device) for name, weight in state["weights"].items()}
        self.adapted = self.denoiser.with_weights(self.weights)


def crop(images: Tensor, size: int) -> Tensor:
    """A random crop of a random image, `(channels, size, size)`, flipped and turned at random."""
    image = images[draw(len(images))]
    row, column = (draw(length - size + 1) for length in image.shape[1:])
    part = image[:, row : row + size, column : column + size]
    part = part.flip(1) if draw(2) else part
    return part.rot90(draw(4), (1, 2))


def draw(count: int) -> int:
    """A random number, 0 .. count - 1."""
    return int(torch.randint(count, ()))
