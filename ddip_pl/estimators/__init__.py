"""Posterior-mean estimators, interchangeable in sampling and in the adaptation loss."""

from ddip_pl.estimators.dds import DDS
from ddip_pl.estimators.estimator import PosteriorMean

__all__ = ["DDS", "PosteriorMean"]
