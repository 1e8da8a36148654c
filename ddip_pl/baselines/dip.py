"""Deep image prior: an untrained network fitted to the measurement (Ulyanov, Vedaldi & Lempitsky 2018)."""

from collections.abc import Iterator

import torch

from ddip_pl.baselines.baseline import Baseline, step
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.unet import UNet, UNetConfig
from ddip_pl.reconstruction.step import Step
from ddip_pl.settings import HalfOpenUnitInterval, LearningRate, NonNegative, PositiveInt, checked

INPUT_CHANNELS = 32


@checked
class DeepImagePrior(Baseline):
    """`min_theta || A^+ (y - A f_theta(z)) ||^2` by Adam, for a U-Net `f` and fixed noise `z`; stopped early.

    `A^+`, the operator's `pseudo_inverse`, gives all frequencies equal weight; with the plain residual, CT would need
    many times more iterations (BP-DIP; Zukerman, Tirer & Giryes 2020). In single-coil MRI it makes no difference.

    One network generates all slices, each from its own noise. The reconstruction is a running average of its outputs,
    as in the paper. It stops once the residual of this average has fallen to the expected size of the noise,
    `discrepancy sigma_y` per measured value (Morozov's principle), before the network learns the noise.

    Args:
        learning_rate: of Adam.
        averaging: share of the earlier outputs in the running average, at least 0 and below 1.
        discrepancy: see above; 0 does all the iterations.
        iterations: maximum number.
        batch_size: slices that pass through the network at once.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 3e-3,
        averaging: HalfOpenUnitInterval = 0.95,
        discrepancy: NonNegative = 1.0,
        iterations: PositiveInt = 500,
        batch_size: PositiveInt = 8,
    ):
        super().__init__(iterations)
        self.learning_rate, self.averaging, self.discrepancy = learning_rate, averaging, discrepancy
        self.batch_size = batch_size

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        guess = measurement.operator.pseudo_inverse(measurement.y)
        slices, channels, height, width = guess.shape
        config = UNetConfig(
            image_size=16, in_channels=INPUT_CHANNELS, out_channels=channels, channel_mult=(1, 1, 1, 1, 1),
            attention_resolutions=(), resblock_updown=False,
        )  # fmt: skip
        network = UNet(config).to(guess)
        noise = 0.1 * torch.rand(slices, INPUT_CHANNELS, height, width).to(guess)
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
        batches = measurement.operator.batches(self.batch_size)
        enough = measurement.noise_energy(self.discrepancy).sum()
        average = None
        for _ in range(self.iterations):
            optimizer.zero_grad()
            outputs = []
            for chosen in batches:
                part = measurement if len(batches) == 1 else measurement[chosen]
                with torch.enable_grad():
                    output = network(noise[chosen], noise.new_zeros(len(chosen)))
                    part.operator.pseudo_inverse(part.residual(output)).square().sum().backward()
                outputs.append(output.detach())
            optimizer.step()
            new = torch.cat(outputs)
            average = new if average is None else new.lerp(average, self.averaging)
            misfit = measurement.misfit(average).sum()
            yield step(average, measurement, loss=float(misfit) / slices)
            if misfit <= enough:
                break
