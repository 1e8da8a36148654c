"""Measurement operators, `y = A x + n`."""

from ddip_pl.physics.cone_beam import ConeBeamCT
from ddip_pl.physics.ct import FanBeamCT, ParallelBeamCT
from ddip_pl.physics.foreign_geometry import from_astra, from_tigre
from ddip_pl.physics.geometry import describe_geometry, geometry_from, same_geometry
from ddip_pl.physics.measurement import Measurement, simulate
from ddip_pl.physics.mri import SENSE, SingleCoilMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.physics.odl import ODLOperator
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.physics.sampling import EquispacedLines, PoissonDisc, RandomLines, RandomPoints
from ddip_pl.physics.sensitivity import Birdcage, espirit
from ddip_pl.physics.trajectory import Radial, Spiral

__all__ = [
    "SENSE",
    "Birdcage",
    "ConeBeamCT",
    "EquispacedLines",
    "FanBeamCT",
    "LinearOperator",
    "Measurement",
    "NonCartesianMRI",
    "ODLOperator",
    "ParallelBeamCT",
    "PoissonDisc",
    "Radial",
    "RandomLines",
    "RandomPoints",
    "SingleCoilMRI",
    "Spiral",
    "describe_geometry",
    "espirit",
    "from_astra",
    "from_tigre",
    "geometry_from",
    "same_geometry",
    "simulate",
]
