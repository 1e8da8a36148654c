"""Measurement operators, `y = A x + n`."""

from ddip_pl.physics.ct import ParallelBeamCT
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.operator import LinearOperator

__all__ = ["LinearOperator", "Measurement", "ParallelBeamCT", "simulate"]
