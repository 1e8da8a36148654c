"""Adaptation of the prior to the scan at hand."""

from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.adaptation.meta import MetaAdaptation
from ddip_pl.adaptation.none import NoAdaptation
from ddip_pl.adaptation.slicewise import SlicewiseAdaptation
from ddip_pl.adaptation.volume import VolumeAdaptation

__all__ = ["Adaptation", "MetaAdaptation", "NoAdaptation", "SlicewiseAdaptation", "VolumeAdaptation"]
