"""Adaptation of the prior to the scan at hand."""

from ddip_pl.adaptation.adaptation import Adaptation, Adapted
from ddip_pl.adaptation.lora import LoraWeights
from ddip_pl.adaptation.meta import MetaAdaptation
from ddip_pl.adaptation.none import NoAdaptation
from ddip_pl.adaptation.self_training import SelfTraining
from ddip_pl.adaptation.slicewise import SlicewiseAdaptation
from ddip_pl.adaptation.training import LoraTraining
from ddip_pl.adaptation.volume import VolumeAdaptation
from ddip_pl.adaptation.weights import AdaptedWeights

__all__ = [
    "Adaptation",
    "Adapted",
    "AdaptedWeights",
    "LoraTraining",
    "LoraWeights",
    "MetaAdaptation",
    "NoAdaptation",
    "SelfTraining",
    "SlicewiseAdaptation",
    "VolumeAdaptation",
]
