"""Posterior-mean estimators, each usable in sampling and in the adaptation loss."""

from ddip_pl.estimators.ddnm import DDNM
from ddip_pl.estimators.dds import DDS
from ddip_pl.estimators.dps import DPS
from ddip_pl.estimators.estimator import Estimate, Memory, PosteriorMean
from ddip_pl.estimators.mbir import DiffusionMBIR

__all__ = ["DDNM", "DDS", "DPS", "DiffusionMBIR", "Estimate", "Memory", "PosteriorMean"]
