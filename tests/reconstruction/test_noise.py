"""No estimator falls far below direct inversion, whatever the task and the noise; the prior has a closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ddip_pl.adaptation import NoAdaptation
from ddip_pl.estimators import DDNM, DDS, DiffusionMBIR, PosteriorMean
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import (
    SENSE,
    Birdcage,
    LinearOperator,
    Measurement,
    ParallelBeamCT,
    PoissonDisc,
    RandomLines,
    SingleCoilMRI,
    simulate,
)
from ddip_pl.prior.denoiser import Denoiser
from ddip_pl.prior.phantoms import RandomEllipses, phantoms
from ddip_pl.prior.schedule import noise_schedule
from ddip_pl.reconstruction.sampler import ReverseDiffusion, Sampler

SIZE = 32
SHAPE = (3, SIZE, SIZE)
OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "30 angles": lambda: ParallelBeamCT(SHAPE, 30),
    "10 angles": lambda: ParallelBeamCT(SHAPE, 10),
    "single coil": lambda: SingleCoilMRI(SHAPE, PoissonDisc(acceleration=4)),
    "6 coils": lambda: SENSE(SHAPE, RandomLines(acceleration=3, centre=0.08), Birdcage(6)),
}


def some_phantoms(count: int, seed: int) -> Tensor:
    drawn = RandomEllipses(count, seed, "uniform")
    return phantoms(torch.stack([torch.from_numpy(drawn[i]["ellipses"]) for i in range(count)]), SIZE)


class Wiener(nn.Module):
    """The exact noise prediction for Gaussian images with the mean and the power spectrum of 64 phantoms."""

    def __init__(self) -> None:
        super().__init__()
        examples = some_phantoms(64, seed=77)
        self.mean, self.abar = examples.mean(0), noise_schedule()
        self.power = torch.fft.fft2(examples - self.mean, norm="ortho").abs().square().mean((0, 1)) + 1e-6

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.abar[t.long()].view(-1, 1, 1, 1)
        centred = torch.fft.fft2(x - abar.sqrt() * self.mean, norm="ortho")
        return (1 - abar).sqrt() * torch.fft.ifft2(centred / (abar * self.power + 1 - abar), norm="ortho").real


CASES = [(estimator, noise) for estimator in (DDS(), DDNM(), DiffusionMBIR()) for noise in (1e-4, 1e-3, 1e-2, 3e-2)]


@pytest.mark.parametrize("task", OPERATORS)
@pytest.mark.parametrize(
    ("estimator", "sigma_y"), CASES, ids=lambda part: str(part) if isinstance(part, float) else type(part).__name__
)
def test_noise_does_not_make_an_estimator_collapse(estimator: PosteriorMean, task: str, sigma_y: float) -> None:
    operator = OPERATORS[task]()
    truth = torch.zeros(3, operator.channels, SIZE, SIZE)
    truth[:, :1] = some_phantoms(3, seed=5)
    y = simulate(truth, operator, sigma_y, torch.Generator().manual_seed(0))
    measurement = Measurement(y, operator, sigma_y, truth)
    torch.manual_seed(0)
    *_, last = ReverseDiffusion(measurement, Denoiser(Wiener()), estimator, NoAdaptation(), Sampler(steps=30)).iterate()
    direct, found = (summary(x, truth)["psnr"] for x in (operator.pseudo_inverse(y), last.images["estimate"]))
    assert found > direct - 1
