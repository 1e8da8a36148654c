"""Methods without a learned prior, for comparison."""

from ddip_pl.baselines.baseline import Baseline
from ddip_pl.baselines.dip import DeepImagePrior
from ddip_pl.baselines.direct import DirectInverse
from ddip_pl.baselines.llr import LocallyLowRank
from ddip_pl.baselines.tv import TotalVariation
from ddip_pl.baselines.wavelet import L1Wavelet

__all__ = ["Baseline", "DeepImagePrior", "DirectInverse", "L1Wavelet", "LocallyLowRank", "TotalVariation"]
