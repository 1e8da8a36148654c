"""Diffusion posterior sampling (Chung et al. 2023): the gradient of the data misfit, through the network."""

from functools import partial

import torch
from torch import Tensor
from torch.func import vjp

from ddip_pl.estimators.estimator import Estimate, Memory, PosteriorMean
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.settings import Positive, checked
from ddip_pl.solvers.cg import divide


@checked
class DPS(PosteriorMean):
    """`x0_hat - step / sqrt(abar_{t-1}) grad_{x_t} || y - A x0_hat(x_t) ||`, with a separate norm for each slice.

    For coupled slices it is their root mean square norm, so that each slice moves as far as it would on its own.

    The paper (Algorithm 1) corrects the sampler's result instead: `x_{t-1} = x'_{t-1} - step grad`. The sampler scales
    the mean by `sqrt(abar_{t-1})`, so both are equivalent; exactly so if no timestep is skipped.

    By the chain rule the gradient is `J^T v`, with the Jacobian `J` of `x0_hat` in `x_t` and the direction
    `v = A^T (A x0_hat - y) / || A x0_hat - y ||`. The images pass through the network once for `v` and again for
    `J^T v`, in the denoiser's batches, so memory does not grow with the volume, whichever plane is denoised.
    Inside an adaptation loss both graphs are kept, so gradients reach the weights.

    Args:
        step: length of the step, for a unit-norm operator and images in [0, 1].

    Raises:
        InputError: `step` is not positive.
    """

    def __init__(self, step: Positive = 1.0):
        self.step = step

    def __call__(
        self, denoiser: Denoiser, x_t: Tensor, t: int, measurement: Measurement, memory: Memory | None = None
    ) -> Estimate:
        x0_hat, eps = denoiser(x_t, t)
        x, v = denoiser.cut(x_t), denoiser.cut(self.direction(x0_hat, measurement))

        def gradient(batch: slice) -> Tensor:
            return vjp(partial(means, denoiser.only(batch), t), x[batch])[1](v[batch])[0]

        gradients = torch.cat(denoiser.batches.map(gradient, len(x)))
        abar = denoiser.abar_at(t - 1 if t else None)
        return Estimate(x0_hat - self.step / abar.sqrt() * denoiser.join(gradients), eps, {})

    def direction(self, x0_hat: Tensor, measurement: Measurement) -> Tensor:
        """`grad || y - A x0_hat ||` with respect to `x0_hat`; 0 for a slice that fits exactly."""
        operator, residual = measurement.operator, measurement.residual(x0_hat)
        lengths = torch.linalg.vector_norm(residual.flatten(1), dim=1) / operator.coupled**0.5
        lengths = operator.per_image(lengths)
        return divide(operator.adjoint(residual), lengths, lengths > 0)

    def condition(
        self, x0_hat: Tensor, measurement: Measurement, memory: Memory, sigma_t: float
    ) -> tuple[Tensor, Memory]:
        raise NotImplementedError("DPS needs the gradient through the network; call it with the denoiser")


def means(denoiser: Denoiser, t: int, images: Tensor) -> Tensor:
    """The prior's means of some images in the denoiser's plane."""
    return denoiser.cut(denoiser(denoiser.join(images), t)[0])
