"""D3IP-EM: the prior learns from its own reconstruction of the volume, and from data hidden from it."""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import default_collate

from ddip_pl.adaptation.adaptation import Adaptation, Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.guard import DIVERGENCES, attempts, ran_away
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.held_out import split
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import AXES, THINNEST, Denoiser
from ddip_pl.prior.phantoms import RandomEllipses, images_of
from ddip_pl.prior.schedule import STEPS, diffuse, tweedie
from ddip_pl.settings import HalfOpenUnitInterval, LearningRate, OpenUnitInterval, Pixels, PositiveInt, Range, checked

ENDLESS = 2**40  # more phantoms than are ever drawn
TRIVIAL = 1.0  # loss of a network that predicts no noise at all


@checked
class SelfTraining(Adaptation):
    """Two trajectories; between them the prior learns from the first one's volume and from data hidden from it.

    The first trajectory reconstructs a volume `x` with the prior as it is, while readouts `y_h` are hidden (E-step).
    Then all weights of the prior are trained (M-step) to minimise the sum of two losses, with
    `x_t = sqrt(abar) x + sqrt(1 - abar) e`:

    - to denoise that volume, `E || e - eps_theta(x_t, t) ||^2`, as in expectation maximisation (Rozet et al. 2024,
      arXiv 2405.13712);
    - to predict the hidden data, `E || A_h D_theta(x_t, t) - y_h ||^2 / || A_h x_t / sqrt(abar) - y_h ||^2`, where
      `D_theta` is the prior's posterior mean. Networks that reconstruct in one step are trained like this without a
      ground truth (SSDU, Yaman et al. 2020). `x` does not depend on the noise of `y_h`, so on average the numerator is
      least for the true volume. The weight of this loss is the share of `|| A_h x - y_h ||^2` that is not noise.

    The second trajectory reconstructs the volume from all data, with the trained prior.

    In volumes of fewer than 8 slices, no data are hidden, and the prior only learns to denoise. There, the prior does
    not denoise across slices, so neighbours cannot fill in what is hidden from a slice, and learning from hidden data
    made results worse (docs/results/adaptation.md).

    Args:
        steps: gradient steps of the M-step; its cost does not depend on the number of slices.
        learning_rate: of Adam, lowered along a cosine to zero.
        batch: crops per gradient step for the first loss. They come from all planes that are at least as large, flipped
            and turned.
        slices: whole slices per gradient step for the second loss, flipped and turned too.
        share: of the readouts to hide from the first trajectory.
        together: number of neighbouring slices that the same readouts are hidden in.
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
        steps: PositiveInt = 150,
        learning_rate: LearningRate = 1e-4,
        batch: PositiveInt = 8,
        slices: PositiveInt = 3,
        share: OpenUnitInterval = 0.2,
        together: PositiveInt = 2,
        phantoms: HalfOpenUnitInterval = 0.25,
        ema: HalfOpenUnitInterval = 0.99,
        crop: Pixels = 64,
        latest: Annotated[int, Range(1, STEPS)] = 200,
    ):
        self.steps, self.learning_rate, self.batch, self.slices = steps, learning_rate, batch, slices
        self.share, self.together = share, together
        self.phantoms, self.ema, self.crop, self.latest = phantoms, ema, crop, latest

    @property
    def images_at_once(self) -> int:
        return self.slices + 1  # the crops together are about one image

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        self.denoiser = self.adapted = denoiser
        self.kept: Measurement = measurement
        self.hidden: Measurement | None = None
        if len(measurement) >= THINNEST:
            self.kept, self.hidden = split(measurement, self.share, together=self.together)
        self.volume: Tensor | None = None
        self.weights: dict[str, Tensor] = {}

    def data(self, measurement: Measurement, trajectory: int) -> Measurement:
        return self.kept if trajectory == 0 else measurement

    def next_trajectory(self, volume: Tensor) -> None:
        self.volume = volume

    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        if self.volume is None:
            return Adapted(self.adapted, {})
        divergences = 0
        for learning_rate in attempts(self.learning_rate):
            losses = self.train(self.volume, learning_rate, on_gradient_step)
            if not ran_away(losses, losses[:1].clamp_min(TRIVIAL)).any():
                break
            self.weights, losses = {}, losses[:1]
            divergences += 1
        self.volume = None
        self.adapted = self.denoiser.with_weights(self.weights)
        few = max(1, self.steps // 5)  # the loss depends on the timesteps drawn, so its mean over a few steps is shown
        figures = {"loss_before": losses[:few].mean().item(), "loss_after": losses[-few:].mean().item()}
        return Adapted(self.adapted, figures | ({DIVERGENCES: divergences} if divergences else {}))

    @torch.enable_grad()
    def train(self, volume: Tensor, learning_rate: float, on_gradient_step: OnGradientStep = ignore) -> Tensor:
        """The M-step; returns its losses, `(steps,)`."""
        losses = []
        weights = {name: weight.detach().clone() for name, weight in self.denoiser.network.named_parameters()}
        self.weights = {name: weight.clone() for name, weight in weights.items()}
        optimizer = torch.optim.Adam([weight.requires_grad_() for weight in weights.values()], learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        hidden = None if self.hidden is None else self.hidden.given(lambda: volume)
        signal = 0.0 if hidden is None else self.signal(volume, hidden)
        for step in range(self.steps):
            loss = self.denoising_loss(weights, self.images(volume))
            if hidden is not None:
                loss = loss + signal * self.hidden_loss(weights, volume, hidden)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            kept = min(self.ema, step / (step + 10))  # forgets the untrained weights quickly
            self.weights = {name: new.detach().lerp(self.weights[name], kept) for name, new in weights.items()}
            losses.append(loss.detach())
            on_gradient_step(step + 1, self.steps)
        return torch.stack(losses)

    def signal(self, volume: Tensor, hidden: Measurement) -> float:
        """Share of `|| A_h x - y_h ||^2` that is not noise, 0 .. 1."""
        misfit, noise = float(hidden.misfit(volume).sum()), float(hidden.noise_energy().sum())
        return 1 - noise / misfit if misfit > noise else 0.0

    def denoising_loss(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """`E || e - eps_theta(x_t, t) ||^2` for images `x`."""
        t = torch.randint(self.latest, (len(x),))
        x_t, noise = self.diffuse(x, t)
        return (self.eps(weights, x_t, t) - noise).square().mean()

    def hidden_loss(self, weights: dict[str, Tensor], volume: Tensor, hidden: Measurement) -> Tensor:
        """`E || A_h D_theta(x_t, t) - y_h ||^2 / || A_h x_t / sqrt(abar) - y_h ||^2` for some slices of the volume."""
        chosen = torch.randperm(len(volume))[: self.slices].sort().values.tolist()
        some, flipped, quarters = hidden[chosen], draw(2), draw(4)
        t = torch.randint(self.latest, (len(some.y),)).repeat_interleave(some.operator.coupled)
        x_t, _ = self.diffuse(turned(volume[chosen], flipped, quarters), t)
        abar = self.denoiser.abar[t].view(-1, 1, 1, 1)
        mean = tweedie(x_t, self.eps(weights, x_t, t), abar)
        predicted, noisy = (some.misfit(turned_back(images, flipped, quarters)) for images in (mean, x_t / abar.sqrt()))
        tiny = torch.finfo(noisy.dtype).tiny  # where slices have masks of their own, nothing may be hidden in one
        return (predicted / noisy.clamp_min(tiny)).mean()

    def diffuse(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`x_t` and its noise, for images at timesteps `t (images,)`."""
        noise = torch.randn(x.shape).to(x)
        return diffuse(x, noise, self.denoiser.abar[t].view(-1, 1, 1, 1)), noise

    def eps(self, weights: dict[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        """`eps_theta(x_t, t)` with these weights."""
        eps: Tensor = functional_call(self.denoiser.network, weights, (x_t, t.to(x_t.device)))
        return eps[:, : x_t.shape[1]]

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
    return turned(image[:, row : row + size, column : column + size], draw(2), draw(4))


def turned(images: Tensor, flipped: int, quarters: int) -> Tensor:
    """Images flipped (1) or not (0), then turned by quarter turns."""
    return (images.flip(-2) if flipped else images).rot90(quarters, (-2, -1))


def turned_back(images: Tensor, flipped: int, quarters: int) -> Tensor:
    """Inverse of `turned`."""
    images = images.rot90(-quarters, (-2, -1))
    return images.flip(-2) if flipped else images


def draw(count: int) -> int:
    """A random number, 0 .. count - 1."""
    return int(torch.randint(count, ()))
