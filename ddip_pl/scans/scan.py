"""A scan: a measurement, and where its image belongs."""

from typing import NamedTuple

from ddip_pl.physics.measurement import Measurement
from ddip_pl.volumes.frame import Frame


class Scan(NamedTuple):
    """A measurement and the frame of its image."""

    measurement: Measurement
    frame: Frame
