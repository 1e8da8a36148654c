"""Direct inversion: filtered back-projection, zero-filled Fourier inversion, CG-SENSE."""

from collections.abc import Iterator

from ddip_pl.baselines.baseline import Baseline, Step
from ddip_pl.physics.measurement import Measurement


class DirectInverse(Baseline):
    """`A^+ y` as the operator has it; see its `pseudo_inverse`."""

    def __init__(self) -> None:
        super().__init__(iterations=1)

    def iterate(self, measurement: Measurement) -> Iterator[Step]:
        yield measurement.operator.pseudo_inverse(measurement.y), {}
