"""3D CT and MRI reconstruction with a diffusion prior learnt from ellipses and adapted to the scan at hand.

Everything here is imported when it is used, so that `import ddip_pl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddip_pl.adaptation import (
        Adaptation,
        AdaptedWeights,
        LoraTraining,
        LoraWeights,
        MetaAdaptation,
        NoAdaptation,
        SlicewiseAdaptation,
        VolumeAdaptation,
    )  # fmt: skip
    from ddip_pl.api import reconstruct
    from ddip_pl.errors import InputError
    from ddip_pl.estimators import DDNM, DDS, DPS, DiffusionMBIR, PosteriorMean
    from ddip_pl.methods import available_methods, load_method
    from ddip_pl.physics import (
        SENSE,
        Birdcage,
        ConeBeamCT,
        EquispacedLines,
        FanBeamCT,
        LinearOperator,
        Measurement,
        NonCartesianMRI,
        ODLOperator,
        ParallelBeamCT,
        PoissonDisc,
        Radial,
        RandomLines,
        RandomPoints,
        SingleCoilMRI,
        Spiral,
        espirit,
        simulate,
    )  # fmt: skip
    from ddip_pl.prior.checkpoint import load_prior
    from ddip_pl.reconstruction import Method, Reconstruction, ReverseDiffusion, Sampler, Step
    from ddip_pl.results.result import Result
    from ddip_pl.volumes.frame import Frame

__version__ = "0.1.0"

_HOMES = {
    "adaptation": (
        "Adaptation", "AdaptedWeights", "LoraTraining", "LoraWeights", "MetaAdaptation", "NoAdaptation",
        "SlicewiseAdaptation", "VolumeAdaptation",
    ),
    "api": ("reconstruct",),
    "errors": ("InputError",),
    "estimators": ("DDNM", "DDS", "DPS", "DiffusionMBIR", "PosteriorMean"),
    "methods": ("available_methods", "load_method"),
    "physics": (
        "SENSE", "Birdcage", "ConeBeamCT", "EquispacedLines", "FanBeamCT", "LinearOperator", "Measurement",
        "NonCartesianMRI", "ODLOperator", "ParallelBeamCT", "PoissonDisc", "Radial", "RandomLines", "RandomPoints",
        "SingleCoilMRI", "Spiral", "espirit", "simulate",
    ),
    "prior.checkpoint": ("load_prior",),
    "reconstruction": ("Method", "Reconstruction", "ReverseDiffusion", "Sampler", "Step"),
    "results.result": ("Result",),
    "volumes.frame": ("Frame",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
