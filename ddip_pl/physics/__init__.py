"""Measurement operators, `y = A x + n`."""

from ddip_pl.physics.ct import ParallelBeamCT
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.mri import SENSE, SingleCoilMRI
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.physics.sampling import EquispacedLines, PoissonDisc, RandomLines, RandomPoints
from ddip_pl.physics.sensitivity import Birdcage, espirit

__all__ = [
    "SENSE",
    "Birdcage",
    "EquispacedLines",
    "LinearOperator",
    "Measurement",
    "ParallelBeamCT",
    "PoissonDisc",
    "RandomLines",
    "RandomPoints",
    "SingleCoilMRI",
    "espirit",
    "simulate",
]
