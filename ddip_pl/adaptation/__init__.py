"""Adaptation of the prior to the scan at hand."""

from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.adaptation.none import NoAdaptation
from ddip_pl.adaptation.volume import VolumeAdaptation

__all__ = ["Adaptation", "NoAdaptation", "VolumeAdaptation"]
