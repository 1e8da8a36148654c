"""Direct inversion: filtered back-projection, zero-filled Fourier inversion, CG-SENSE."""

from collections.abc import Iterator

from ddip_pl.baselines.baseline import Baseline, step
from ddip_pl.physics.measurement import Measurement
from ddip_pl.reconstruction.step import Step


class DirectInverse(Baseline):
    """`A^+ y`, the operator's `pseudo_inverse`."""

    def __init__(self) -> None:
        super().__init__(iterations=1)

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        yield step(measurement.operator.pseudo_inverse(measurement.y), measurement)
