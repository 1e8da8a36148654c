"""DDIP (Chung & Ye 2024) and SCD (Barbano et al. 2023): separate LoRA weights for every slice, trained in batches."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddip_pl.adaptation.adaptation import Adapted, OnGradientStep, ignore
from ddip_pl.adaptation.guard import attempts, ran_away
from ddip_pl.adaptation.lora import LoRA, LoraWeights
from ddip_pl.adaptation.training import LoraAdaptation, LoraTraining
from ddip_pl.errors import InputError
from ddip_pl.estimators.estimator import PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser


class SlicewiseAdaptation(LoraAdaptation):
    """AdamW on `|| y_i - A D_theta_i(x_t^i | y_i) ||^2` for every slice i, which has its own weights `theta_i`.

    The slices of a batch go through the network together, each with its own weights. Up to rounding, the result is the
    same as for one slice at a time. Time grows with the number of slices; so does memory, by about twice the size of
    the weights. Only for estimators that treat slices independently.

    Args:
        training: settings of the training.
    """

    def __init__(self, training: LoraTraining = LoraTraining()):  # noqa: B008 (frozen)
        super().__init__(training)

    @property
    def images_at_once(self) -> int:
        return 1

    def check(self, planes: Literal["slices", "all"]) -> None:
        if planes == "all":
            raise InputError(
                "slices with their own weights cannot be denoised in other planes; set model.sampler.planes to slices"
            )

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        self.start_from(denoiser, measurement, self.initial)

    def start_from(self, denoiser: Denoiser, measurement: Measurement, initial: LoraWeights | None) -> None:
        """Prepare for a volume, starting every slice from given weights.

        Raises:
            InputError: the settings or the weights do not fit the volume.
        """
        slices, training = len(measurement), self.training
        refuse_coupled(measurement)
        if initial is not None and initial.slices not in (0, slices):
            raise InputError(
                f"start_from has weights for each of {initial.slices} slices, the volume has {slices}; give one set "
                "for all, or one for each slice"
            )
        lora = LoRA(denoiser.network, training.rank, training.bias, slicewise=True)
        vectors = []
        for i in range(slices if initial is not None and initial.slices else 1):
            if initial is not None:
                self.load(lora, initial.of_slice(i))
            vectors.append(lora.flat())
        self.begin(denoiser, measurement, lora)
        # One parameter per slice, so that AdamW leaves a slice and its state unchanged in steps without it.
        self.theta = [nn.Parameter(vectors[i % len(vectors)].clone()) for i in range(slices)]
        self.average = torch.stack([theta.detach() for theta in self.theta])

    @property
    def adapted(self) -> Denoiser:
        """The denoiser that computes with the averaged weights of all slices."""
        return self.denoiser.with_weights(self.lora.split(self.average), slicewise=True)

    @torch.enable_grad()
    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        if not self.training.within_horizon(t):
            return Adapted(self.adapted, {})
        first, last = x_t.new_zeros(2, len(x_t))
        batches, steps = self.denoiser.batches, self.training.steps

        def adapt_batch(part: slice) -> int:
            """Adapt the weights of some slices; returns how often their losses ran away."""
            divergences, batch = 0, torch.arange(len(x_t))[part]

            def on_step(done: int) -> None:
                number, count = part.start // batches.size, -(-len(x_t) // batches.size)
                on_gradient_step(number * steps + done, count * steps)

            before = batch, *self.weights_of(batch)
            try:
                for learning_rate in attempts(self.training.learning_rate):
                    first[batch], last[batch], diverged = self.train(estimator, x_t, t, batch, learning_rate, on_step)
                    batch = batch[diverged]
                    if len(batch) == 0:
                        break
                    last[batch] = first[batch]
                    divergences += len(batch)
            except torch.OutOfMemoryError:  # the slices are adapted again, fewer at once
                self.restore(*before)
                raise
            return divergences

        divergences = sum(batches.map(adapt_batch, len(x_t)))
        adapted = self.adapted
        return Adapted(adapted, self.figures(first, last, dict(adapted.weights), divergences))

    def train(
        self,
        estimator: PosteriorMean,
        x_t: Tensor,
        t: int,
        batch: Tensor,
        learning_rate: float,
        on_step: Callable[[int], None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient steps on some slices, each until its loss is at noise level or runs away.

        Slices whose losses run away get their weights back.

        Returns:
            The first and the last loss of each slice, and whether its losses ran away.
        """
        before = self.weights_of(batch)
        optimizer = torch.optim.AdamW([self.theta[i] for i in batch], learning_rate)
        diverged = torch.zeros(len(batch), dtype=torch.bool)
        left = torch.arange(len(batch))  # slices of the batch above noise level
        for step in range(self.training.steps):
            losses, enough = self.losses_of(batch[left], estimator, x_t, t)
            if step == 0:
                first, last = losses.detach(), losses.detach().clone()
            last[left] = losses.detach()
            on_step(step + 1)
            away = ran_away(losses, first[left])
            more = ~away & (losses > enough)
            gone, going_on = torch.stack([away, more]).cpu()
            diverged[left[gone]] = True
            left = left[going_on]
            if len(left) == 0:
                break
            trained = [self.theta[i] for i in batch[left]]
            optimizer.zero_grad()
            losses[more].sum().backward(inputs=trained)
            optimizer.step()
            latest = torch.stack([theta.detach() for theta in trained])
            self.average[batch[left]] = latest.lerp(self.average[batch[left]], self.training.ema)
        else:
            with torch.no_grad():  # the last weights
                losses, _ = self.losses_of(batch[left], estimator, x_t, t)
            diverged[left] = ran_away(losses, first[left]).cpu()
        optimizer.zero_grad()
        self.restore(batch[diverged], *(weights[diverged] for weights in before))
        return first, last, diverged

    def weights_of(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the latest and the averaged weights of some slices."""
        return torch.stack([self.theta[i].detach() for i in batch]), self.average[batch]

    def restore(self, batch: Tensor, latest: Tensor, average: Tensor) -> None:
        """Give some slices these weights."""
        self.average[batch] = average
        for i, weights in zip(batch, latest, strict=True):
            self.theta[i].data.copy_(weights)

    def losses_of(self, chosen: Tensor, estimator: PosteriorMean, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Losses of some slices with their latest weights, and their noise levels, see `losses`."""
        theta = torch.stack([self.theta[i] for i in chosen])
        denoiser = self.denoiser.with_weights(self.lora.split(theta), slicewise=True)
        return self.losses(estimator, denoiser, x_t[chosen], t, self.measurement[chosen])

    def finish(self) -> LoraWeights:
        tensors = self.lora.split(self.average)
        self.lora.remove()
        return LoraWeights(tensors, self.training.rank, self.training.bias, slices=len(self.theta))

    def state_dict(self) -> dict[str, Any]:
        latest = torch.stack([theta.detach() for theta in self.theta])
        return {"latest": latest, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for theta, value in zip(self.theta, state["latest"], strict=True):
            theta.data.copy_(value)
        self.average = state["average"].to(self.average)


def refuse_coupled(measurement: Measurement) -> None:
    """Raise `InputError` if slices are measured together, which rules out adapting them one by one."""
    if measurement.operator.coupled > 1:
        raise InputError(
            f"{type(measurement.operator).__name__} measures slices together, but the adaptation takes them one by "
            "one; choose d3ip or d3ip_mbir, or a method without adaptation"
        )
