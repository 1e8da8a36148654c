"""DDIP (Chung & Ye 2024) and SCD (Barbano et al. 2023): LoRA weights of its own for every slice, many at once."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ddip_pl.adaptation.adaptation import Figures
from ddip_pl.adaptation.lora import LoRA, Weights
from ddip_pl.adaptation.trained import TrainedAdaptation
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class SlicewiseAdaptation(TrainedAdaptation):
    """AdamW on `|| y_i - A D_theta_i(x_t^i | y_i) ||^2` for every slice i, with weights `theta_i` of its own.

    A batch of slices goes through the network at once, each with its own weights; to rounding, the result is that of
    one slice after the other. The time grows with the number of slices, the memory by the weights of each slice and
    their optimiser's state, four times as much. For estimators that take the slices one by one.

    Args:
        **settings: of the training, see `TrainedAdaptation`.
    """

    slicewise = True

    def __init__(self, **settings: Any):
        super().__init__(**settings)

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        slices = len(measurement)
        if len(self.initial) not in (0, 1, slices):
            raise InputError(
                f"start_from has weights for each of {len(self.initial)} slices, the volume has {slices}; give those "
                "of a volume, or of as many slices"
            )
        self.begin(denoiser, measurement, LoRA(denoiser.network, self.rank, self.bias, slicewise=True))
        vectors = []
        for weights in self.initial or [self.lora.state_dict()]:
            self.lora.load_state_dict(weights)
            vectors.append(self.lora.flat())
        # One vector for a slice, which AdamW leaves alone, with its state, in steps that the slice takes no part in.
        self.theta = [nn.Parameter(vectors[i % len(vectors)].clone()) for i in range(slices)]
        self.optimizer = torch.optim.AdamW(self.theta, self.learning_rate)
        self.average = torch.stack([theta.detach() for theta in self.theta])
        denoiser.slicewise = True
        self.use_average()

    @torch.enable_grad()
    def adapt(self, estimator: PosteriorMean, x_t: Tensor, t: int) -> Figures:
        if not self.within_horizon(t):
            return {}
        first, last = x_t.new_zeros(2, len(x_t))
        batches = torch.arange(len(x_t)).split(self.denoiser.batch_size)
        for number, batch in enumerate(batches):
            for step, (left, losses) in enumerate(self.adapt_batch(estimator, x_t, t, batch)):
                last[left] = losses
                if step == 0:
                    first[left] = losses
                self.on_gradient_step(number * self.steps + step + 1, len(batches) * self.steps)
        self.use_average()
        return self.figures(first, last, self.lora.split(self.average))

    def adapt_batch(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, batch: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradient steps of some slices, each until its loss is that of noise; yields who took part, and losses."""
        left = torch.arange(len(batch))  # those of the batch that go on
        for _ in range(self.steps):
            theta = torch.stack([self.theta[i] for i in batch[left]])
            self.denoiser.weights = self.lora.split(theta)
            losses = self.losses(estimator, x_t, t, batch[left])
            yield batch[left], losses.detach()
            more = losses > self.enough(batch[left])
            left = left[more.cpu()]
            if len(left) == 0:
                break
            trained = [self.theta[i] for i in batch[left]]
            self.optimizer.zero_grad()
            losses[more].sum().backward(inputs=trained)
            self.optimizer.step()
            latest = torch.stack([theta.detach() for theta in trained])
            self.average[batch[left]] = latest.lerp(self.average[batch[left]], self.ema)
        self.optimizer.zero_grad()

    def use_average(self) -> None:
        """Let the denoiser compute with the averaged weights of all slices."""
        self.denoiser.weights = self.lora.split(self.average)

    def finish(self) -> Weights:
        self.denoiser.weights, self.denoiser.slicewise = {}, False
        weights = self.lora.split(self.average)
        self.lora.remove()
        return {f"{i:04d}/{name}": weight[i] for i in range(len(self.theta)) for name, weight in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        latest = torch.stack([theta.detach() for theta in self.theta])
        return {"latest": latest, "average": self.average, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for theta, value in zip(self.theta, state["latest"], strict=True):
            theta.data.copy_(value)
        self.average = state["average"].to(self.average)
        self.optimizer.load_state_dict(state["optimizer"])
        self.use_average()
