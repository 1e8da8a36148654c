"""Reconstruction of a volume by reverse diffusion."""

from ddip_pl.reconstruction.loop import ReconstructionTrainer
from ddip_pl.reconstruction.module import Reconstruction, Result

__all__ = ["Reconstruction", "ReconstructionTrainer", "Result"]
