"""A custom adaptation: it trains only the biases of the network (BitFit, Ben Zaken et al. 2022)."""

from typing import Any

import torch
from torch import Tensor, nn

from ddip_pl.adaptation import Adaptation, Adapted, AdaptedWeights
from ddip_pl.adaptation.adaptation import OnGradientStep, ignore
from ddip_pl.errors import InputError
from ddip_pl.estimators import PosteriorMean
from ddip_pl.physics import Measurement
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.settings import LearningRate, PositiveInt, checked


@checked
class BiasAdaptation(Adaptation):
    """One step of Adam on the biases at each timestep, for `E_i || y_i - A D_theta(x_t^i | y_i) ||^2`.

    Args:
        slices: K, the random slices per step.
        learning_rate: of Adam.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, slices: PositiveInt = 3, learning_rate: LearningRate = 1e-3):
        self.slices, self.learning_rate = slices, learning_rate

    def start(self, denoiser: Denoiser, measurement: Measurement) -> None:
        if self.slices > len(measurement):
            raise InputError(
                f"the adaptation draws {self.slices} slices, the volume has {len(measurement)}; give fewer"
            )
        parameters = denoiser.network.named_parameters()
        self.biases = {n: nn.Parameter(p.detach().clone()) for n, p in parameters if n.endswith("bias")}
        self.optimizer = torch.optim.Adam(self.biases.values(), self.learning_rate)
        self.measurement = measurement
        self.denoiser = denoiser.with_weights(self.biases)  # they replace the network's biases

    @torch.enable_grad()
    def adapt(
        self, estimator: PosteriorMean, x_t: Tensor, t: int, on_gradient_step: OnGradientStep = ignore
    ) -> Adapted:
        chosen = torch.randperm(len(x_t))[: self.slices]
        part = self.measurement[chosen]
        loss = part.misfit(estimator(self.denoiser, x_t[chosen], t, part).mean).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        on_gradient_step(1, 1)
        return Adapted(self.denoiser, {"loss": loss.item()})

    def finish(self) -> AdaptedWeights:
        return AdaptedWeights({name: bias.detach() for name, bias in self.biases.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"biases": {n: b.detach() for n, b in self.biases.items()}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state["biases"].items():
            self.biases[name].data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
