"""Reconstruction of a measurement in memory, in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.methods.shipped import load_method
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.step import Step
from ddip_pl.results.result import Result
from ddip_pl.volumes.frame import Frame

Array = Tensor | np.ndarray


def reconstruct(
    y: Array,
    A: LinearOperator,
    sigma_y: float | None = None,
    method: str | Method = "dds",
    *,
    reference: Array | None = None,
    frame: Frame | None = None,
    seed: int = 0,
    progress: bool = True,
    **changes: Any,
) -> Result:
    """Reconstruct a volume from its measurement `y = A x + n`.

    The result is the same as from the command line with the same method and seed.

    Args:
        y: measured values with shape `A.range`, scaled so that the images `x` have intensities of about 0 to 1.
        A: the operator; if its norm is not 1, it is normalised, and `y` and `sigma_y` are scaled with it.
        sigma_y: standard deviation of the noise in `y`; by default estimated from `y`.
        method: name of a method, see `available_methods`, or a `Method`.
        reference: the true images `(slices, channels, height, width)`, if known, for `Result.metrics`.
        frame: name, position and units of the volume, for `Result.save`.
        seed: of all random numbers.
        progress: show a progress bar.
        **changes: settings of a method given by name, see `load_method`.

    Returns:
        The result; its images are a NumPy array if `y` is one, otherwise a tensor.

    Raises:
        InputError: the measurement does not fit the operator, or the settings do not fit the measurement.
    """
    if changes and isinstance(method, Method):
        raise InputError(f"{', '.join(changes)} given with a {type(method).__name__}; pass them to its constructor")
    if A.like.dtype != torch.float32:
        raise InputError(f"{type(A).__name__} is in {A.like.dtype}; reconstruct needs single precision, call A.float()")
    if A.range[0] * A.coupled != A.domain[0]:
        raise InputError(
            f"{type(A).__name__} turns {A.domain} into {A.range}; set `coupled`, now {A.coupled}, to the number of "
            "slices that are measured together"
        )
    tensor = as_tensor("y", y, A.range).to(A.like.device)
    unit = A.normalised()
    factor = unit.scale / A.scale
    given = sigma_y is not None
    if sigma_y is None:
        sigma_y = A.noise_level(tensor)
        if not 0 < sigma_y < float("inf"):
            raise InputError("the noise level cannot be estimated from y; give sigma_y")
    if not 0 <= sigma_y < float("inf"):
        raise InputError(f"sigma_y is {sigma_y}; give a standard deviation of at least 0")
    truth = None if reference is None else as_tensor("reference", reference, A.domain)
    measurement = Measurement(tensor / factor, unit, sigma_y / factor, truth).to(unit.like.device)
    if given:
        measurement = measurement.with_surplus()
    with torch.random.fork_rng(range(torch.cuda.device_count())), Progress(disable=not progress) as bars:
        torch.manual_seed(seed)
        chosen = load_method(method, **changes) if isinstance(method, str) else method
        torch.manual_seed(seed)
        task = bars.add_task(method if isinstance(method, str) else type(method).__name__, total=None)

        def on_step(done: int, steps: int, step: Step) -> None:
            bars.update(task, total=steps, completed=done)

        result = chosen.to(unit.like.device).reconstruct(measurement, frame or Frame(), on_step)
    return replace(result, images=result.tensor.numpy(force=True)) if isinstance(y, np.ndarray) else result


def as_tensor(name: str, values: Array, shape: tuple[int, ...]) -> Tensor:
    """Values as a tensor in single precision.

    Raises:
        InputError: the values have another shape or are not all finite.
    """
    if isinstance(values, np.ndarray):  # files may have the other byte order, which PyTorch has not
        values = torch.from_numpy(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))
    tensor = values
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        given = f"has shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"is a {type(values).__name__}"
        raise InputError(f"{name} {given}; expected a tensor or an array of shape {shape}")
    if not tensor.isfinite().all():
        raise InputError(f"{name} has NaN or infinite values; replace them, or leave out the slices that have them")
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
