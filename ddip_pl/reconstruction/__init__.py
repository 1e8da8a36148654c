"""Reconstruction of a volume by reverse diffusion."""

from ddip_pl.reconstruction.best_of import BestOf
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.module import Reconstruction
from ddip_pl.reconstruction.sampler import ReverseDiffusion, Sampler
from ddip_pl.reconstruction.step import Process, Step

__all__ = ["BestOf", "Method", "Process", "Reconstruction", "ReverseDiffusion", "Sampler", "Step"]
