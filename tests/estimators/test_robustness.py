"""DDS with the shipped prior is not worse than CG-SENSE, whatever the acceleration and the noise level it is told."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ddip_pl
from ddip_pl.physics import SENSE, Birdcage, RandomLines, simulate

SIZE, STEPS, EXAMPLES = 64, 10, 5
WORSE = 0.2  # dB


def head() -> Tensor:
    """Ellipses, a box and stripes, with a smooth phase: `(1, 2, height, width)`. The prior has seen no stripes."""
    axis = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.8) ** 2 < 1
    image = torch.where((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1, 0.8, 0.0)
    image[inside] = 0.4 + 0.1 * torch.sin(20 * x[inside])
    image[(x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.05] = 0.9
    image[((x + 0.3).abs() < 0.15) & ((y - 0.2).abs() < 0.3)] = 0.1
    phase = 1 + x
    return torch.stack([image * phase.cos(), image * phase.sin()])[None]


def psnr(images: Tensor, truth: Tensor) -> float:
    """Of the magnitude."""
    return float(-10 * (images.norm(dim=1) - truth.norm(dim=1)).square().mean().log10())


def gain(acceleration: float, sigma_y: float, factor: float, **changes: Any) -> float:
    """PSNR of DDS over that of CG-SENSE, in dB, if DDS is told `factor sigma_y`."""
    truth = head()
    A = SENSE((1, SIZE, SIZE), RandomLines(acceleration), Birdcage(6))
    y = simulate(truth, A, sigma_y, torch.Generator().manual_seed(0))
    changes = {"sampler.steps": STEPS} | changes
    result = ddip_pl.reconstruct(y, A, sigma_y=factor * sigma_y, method="dds", progress=False, **changes)
    return psnr(result.tensor, truth) - psnr(A.pseudo_inverse(y), truth)


@settings(max_examples=EXAMPLES)
@given(
    acceleration=st.floats(1, 12), sigma_y=st.sampled_from([0.005, 0.01, 0.03, 0.1]), factor=st.floats(0.7, 1.3)
)  # fmt: skip
def test_dds_is_not_worse_than_cg_sense(acceleration: float, sigma_y: float, factor: float) -> None:
    assert gain(acceleration, sigma_y, factor) > -WORSE


def test_a_prior_that_outweighs_complete_data_would_be_worse() -> None:
    """So the test above can fail."""
    assert gain(1, 0.01, 1.3, **{"estimator.init_args": {"spread": 0.02}}) < -WORSE
