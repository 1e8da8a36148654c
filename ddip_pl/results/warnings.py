"""Rules for results that should not be trusted without a second look."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddip_pl.adaptation.guard import DIVERGENCES
from ddip_pl.prior.sizes import unsuitable

LEAST, MOST = 0.1, 2.0  # discrepancy; good runs of the shipped methods end between 0.4 and 1.6
DARKEST, BRIGHTEST = 0.1, 1.5  # values of bright voxels, which the prior knows as about 1
BRIGHT = 0.99  # quantile of the voxels
RISE = 1.25  # of the mean loss by the gradient steps
ALONE = 0.5  # share of the image's energy that only the prior decided


def warnings(
    images: Tensor, figures: Mapping[str, Any], trajectory: Sequence[Mapping[str, float]], prior_size: int | None
) -> list[str]:
    """What is suspicious about a result, one line each.

    Args:
        images: their magnitude, `(slices, 1, height, width)`, as the prior sees them.
        figures: of merit.
        trajectory: figures of each step.
        prior_size: height and width that the prior is trained for; None if there is no prior.
    """
    found = [fit_to_the_data(figures), adaptation(trajectory), null_space(figures)]
    if prior_size is not None:
        _, _, height, width = images.shape
        found += [unsuitable(height, width, prior_size), intensities(images)]
    return [warning for warning in found if warning is not None]


def fit_to_the_data(figures: Mapping[str, Any]) -> str | None:
    """The residual is much larger or smaller than the noise. A direct inversion does not know the noise."""
    discrepancy = figures.get("discrepancy")
    if discrepancy is None or discrepancy == figures.get("input_discrepancy") or LEAST <= discrepancy <= MOST:
        return None
    if discrepancy < LEAST:
        return f"the residual is {discrepancy:.2g} of the noise: sigma_y is too large, or the noise has been fitted"
    return f"the residual is {discrepancy:.3g} times the noise: the images do not fit the data, or sigma_y is too small"


def adaptation(trajectory: Sequence[Mapping[str, float]]) -> str | None:
    """The adaptation ran away from the data: its gradient steps diverged, or raised the loss."""
    if diverged := int(sum(row.get(DIVERGENCES, 0) for row in trajectory)):
        return f"the adaptation diverged {diverged} times; lower its learning_rate"
    before, after = (sum(row.get(f"loss_{when}", 0) for row in trajectory) for when in ("before", "after"))
    if after > RISE * before:
        return f"the adaptation raised its loss {after / before:.3g} times; lower its learning_rate"
    return None


def null_space(figures: Mapping[str, Any]) -> str | None:
    """The prior decided most of the image; known only if there are samples."""
    energy = figures.get("null_space_energy", 0)
    if energy > ALONE:
        return f"{energy:.0%} of the image's energy leaves no trace in the data; the prior alone decided it"
    return None


def intensities(images: Tensor) -> str | None:
    """The values are not those that the prior knows, from about 0 to 1."""
    some = images.flatten()[:: 1 + images.numel() // 1_000_000]  # a quantile of more takes long
    bright = float(torch.quantile(some.abs().float(), BRIGHT))
    if DARKEST <= bright <= BRIGHTEST:
        return None
    return (
        f"99% of the voxels are below {bright:.2g}, but the prior knows images from 0 to 1; set data.window, or scale y"
    )
