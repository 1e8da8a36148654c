"""Reverse diffusion as a plain object: Algorithm 2 of D3IP (Chung & Ye 2024), and all methods of the same form."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ddip_pl.adaptation.adaptation import Adaptation, OnGradientStep, ignore
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import THINNEST, Denoiser, Plane
from ddip_pl.prior.schedule import STEPS, Timestep, ddim_step, diffuse, slerp, timesteps, tweedie
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import HalfOpenUnitInterval, NonNegative, Power, Range, UnitInterval, checked


@checked
@dataclass(frozen=True)
class Sampler:
    """Settings of the reverse diffusion.

    Args:
        steps: number of diffusion steps; under noise, the last of them are left out, see `floor`.
        start: T', the first timestep, 0 .. 999.
        spacing: of the timesteps, see `timesteps`; 1 spaces them evenly, as in the paper.
        eta: share of fresh noise in a DDIM step, 0 .. 1.
        initial_noise: "interpolated" from the first slice to the last (D3IP), or "independent" in each slice.
        planes: the prior denoises only "slices", as in the paper, or "all" three planes in turn, one per step (only
            slices if the volume has fewer than 8).
        averaging: share of the earlier posterior means in the running average that the next step continues from, at
            least 0 and below 1. If noise is added, that of the means is different, so their average is closer to the
            truth.
        noise_above: noise is added on the way to timesteps above this. On the way to the others, sampling goes on from
            the mean, because the steps left are too few to remove the noise again. With few steps, 999 is best: no
            noise at all, as in plug-and-play methods (DPIR, Zhang et al. 2021). The published code has 0; -1 adds noise
            to the end, which DPS needs.
        floor: steps are left out where the noise of `x_t` is below this many times that of the data, as it appears in
            the image (`Measurement.image_noise`), because they make it worse (docs/results/sampling.md); none at
            timesteps above half of `noise_above`. With few steps, 0 is best, which leaves out none.

    Raises:
        InputError: a setting is out of range.
    """

    steps: Annotated[int, Range(1, STEPS)] = 80
    start: Timestep = 150
    spacing: Power = 3.0
    eta: UnitInterval = 1.0
    initial_noise: Literal["interpolated", "independent"] = "interpolated"
    planes: Literal["slices", "all"] = "all"
    averaging: HalfOpenUnitInterval = 0.3
    noise_above: Annotated[int, Range(-1, STEPS - 1)] = 10
    floor: NonNegative = 0.12

    def __post_init__(self) -> None:
        if self.steps > self.start + 1:
            raise InputError(f"{self.steps} steps from timestep {self.start}; give at most start + 1 steps")

    @classmethod
    def published(cls) -> Sampler:
        """The settings of the paper."""
        return cls(steps=50, start=980, spacing=1.0, eta=0.85, planes="slices", averaging=0.0, noise_above=0, floor=0.0)

    @classmethod
    def posterior(cls) -> Sampler:
        """Settings to draw posterior samples with: the deterministic way from noise to image (DDIM with eta 0).

        The default settings lead to about the same image from any noise. These keep the noise to the end, and start
        from more of it, so that different noise gives images that differ as much as the measurement allows.
        """
        return cls(start=300, eta=0.0, initial_noise="independent", averaging=0.0, noise_above=-1, floor=0.0)

    @property
    def keeps_noise(self) -> bool:
        """Whether the image still depends on the initial noise; otherwise samples are nearly alike."""
        return self.eta < 1 and self.averaging == 0 and self.noise_above < 0

    @property
    def timesteps(self) -> list[int]:
        """The timesteps, from `start` down to 0."""
        return timesteps(self.start, self.steps, self.spacing)

    def timesteps_for(self, measurement: Measurement, sigma: Sequence[float]) -> list[int]:
        """The timesteps without those that are left out under noise, see `floor`.

        Args:
            measurement: says how much noise there is.
            sigma: noise in `x_t / sqrt(abar)` at every timestep.
        """
        if not self.floor:
            return self.timesteps
        last = bisect_left(sigma, self.floor * measurement.image_noise)
        return [t for t in self.timesteps if t >= min(last, self.noise_above // 2, self.start)]

    def planes_of(self, slices: int) -> tuple[Plane, ...]:
        """The planes that take turns in a volume with this number of slices."""
        return ("slices",) if self.planes == "slices" or slices < THINNEST else ("slices", "rows", "columns")


class ReverseDiffusion:
    """From noise to a volume, one diffusion step at a time; its state holds everything that a step depends on.

    It works with any operator, estimator and adaptation.

    Args:
        measurement: `y = A x + n`.
        denoiser: the prior, `eps_theta`.
        estimator: `D_theta(x_t | y)`.
        adaptation: of the prior to the measurement.
        sampler: settings of the steps.
        on_gradient_step: called after every gradient step of the adaptation.
        samples: number of volumes that are drawn side by side, each with noise of its own. They share the adapted
            prior: it adapts at the `x_t` of the first one.

    Attributes:
        x: `x_t` of all samples, `(samples, slices, channels, height, width)`.
        step: number of diffusion steps done, over all trajectories.
        steps: number of diffusion steps in total.
        mean: running averages of the posterior means, with the shape of `x`.
        memory: what the estimator carries from one step to the next, for each sample.
        noise: generator of the noise, which depends only on the seed, not on other random draws.
        weights: the adapted weights, available at the end.
    """

    x: Tensor
    weights = AdaptedWeights()

    def __init__(
        self,
        measurement: Measurement,
        denoiser: Denoiser,
        estimator: PosteriorMean,
        adaptation: Adaptation,
        sampler: Sampler,
        on_gradient_step: OnGradientStep = ignore,
        samples: int = 1,
    ):
        self.measurement, self.denoiser = measurement, denoiser
        self.estimator, self.adaptation, self.sampler = estimator, adaptation, sampler
        self.on_gradient_step, self.samples = on_gradient_step, samples
        self.timesteps = sampler.timesteps_for(measurement, denoiser.sigma)
        self.planes = sampler.planes_of(len(measurement))
        self.step, self.steps = 0, len(self.timesteps) * adaptation.trajectories
        self.mean: Tensor | None = None
        self.memory: tuple[Memory, ...] = ()
        self.noise = torch.Generator()

    def iterate(self, state: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """Run Algorithm 2 from the beginning or from a saved state; docs/algorithm.md compares it with the paper."""
        self.step = 0
        self.noise.manual_seed(torch.initial_seed())
        self.adaptation.start(self.denoiser, self.measurement)
        try:
            if state is not None:
                self.load_state_dict(state)
            while self.step < self.steps:
                if self.step % len(self.timesteps) == 0:
                    self.initialise()
                yield self.advance()
        finally:
            self.weights = self.adaptation.finish()

    @torch.no_grad()
    def initialise(self) -> None:
        """Begin a trajectory: `x_T' = sqrt(abar) A^+ y + sqrt(1 - abar) slerp(e_1, e_N, i / N)`."""
        if self.mean is not None:
            self.adaptation.next_trajectory(self.mean.mean(0))
        guess = self.data.operator.pseudo_inverse(self.data.y)
        noise = torch.stack([self.initial_noise(guess) for _ in range(self.samples)])
        self.x = diffuse(guess, noise.to(guess), self.denoiser.abar_at(self.timesteps[0]))
        self.mean, self.memory = None, ({},) * self.samples

    def initial_noise(self, guess: Tensor) -> Tensor:
        """Gaussian noise for a volume like `guess`."""
        if self.sampler.initial_noise == "independent":
            return self.gaussian(*guess.shape)
        first, last = self.gaussian(2, *guess.shape[1:])
        return slerp(first, last, len(guess))

    @torch.no_grad()
    def advance(self) -> Step:
        """Adapt the prior at `t`, then go from `x_t` to `x_{t-1}`."""
        x, index = self.x, self.step % len(self.timesteps)
        t, t_next = self.timesteps[index], (*self.timesteps, 0)[index + 1]
        plane = self.planes[self.step % len(self.planes)]

        denoiser, figures = self.adaptation.adapt(self.estimator, x[0], t, self.on_gradient_step)
        estimates = [
            self.estimator(denoiser.across(plane), x_t, t, self.data, memory)
            for x_t, memory in zip(x, self.memory, strict=True)
        ]
        means, noises, self.memory = zip(*estimates, strict=True)
        mean, eps = torch.stack(means), torch.stack(noises)
        self.mean = mean if self.mean is None else mean.lerp(self.mean, self.sampler.averaging)
        noise = self.gaussian(*x.shape).to(x)
        if t_next > self.sampler.noise_above:
            self.x = ddim_step(self.mean, eps, noise, denoiser.abar_at(t_next), self.sampler.eta)
        else:
            self.x = denoiser.abar_at(t_next or None).sqrt() * self.mean  # the published t = 0 is the clean image

        self.step += 1
        estimate = self.mean.mean(0)
        images = {"x0_hat": tweedie(x, eps, denoiser.abar_at(t)).mean(0), "estimate": estimate}
        return Step(images, {"t": t, "residual": self.measurement.relative_residual(estimate), **figures})

    @property
    def data(self) -> Measurement:
        """The part of the measurement that this trajectory reconstructs from."""
        return self.adaptation.data(self.measurement, self.step // len(self.timesteps))

    def gaussian(self, *shape: int) -> Tensor:
        """Gaussian noise from this object's own generator."""
        return torch.randn(*shape, generator=self.noise)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the next steps depend on."""
        state = {
            "timesteps": self.timesteps,
            "x": self.x,
            "step": self.step,
            "mean": self.mean,
            "memory": self.memory,
            "noise": self.noise.get_state(),
            "random": torch.get_rng_state(),
            "batch_size": self.denoiser.batches.size,
            "adaptation": self.adaptation.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, with the same random numbers as the original run.

        Raises:
            InputError: the state belongs to another run.
        """
        samples, slices = state["x"].shape[:2]
        if (state["timesteps"], samples, slices) != (self.timesteps, self.samples, len(self.measurement)):
            raise InputError(
                f"the checkpoint is of {samples} x {slices} slices, {len(state['timesteps'])} steps from "
                f"{state['timesteps'][0]}; give the data and settings it was saved with"
            )
        state = copy.deepcopy(state)
        self.x, self.step = state["x"].to(self.measurement.y.device), state["step"]
        self.mean = None if state["mean"] is None else state["mean"].to(self.x)
        self.memory = tuple(
            {name: value.to(self.x.device) for name, value in memory.items()} for memory in state["memory"]
        )
        self.adaptation.load_state_dict(state["adaptation"])
        self.denoiser.batches.size = state["batch_size"]  # it may have been halved
        self.noise.set_state(state["noise"])
        torch.set_rng_state(state["random"])
