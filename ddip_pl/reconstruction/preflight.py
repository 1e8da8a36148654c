"""Before a run: does it fit into memory?"""

import logging
from typing import NamedTuple

from ddip_pl.adaptation.adaptation import Adaptation
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.prior.denoiser import AXES, Denoiser, Plane
from ddip_pl.prior.footprint import bytes_per_pixel
from ddip_pl.reconstruction.memory import available_memory

# Copies of the images and of the measured values that are in memory at once. With them the estimate is 0.7 to 2.3 times
# what dds took for 96 to 600 slices (sv_ct, mri_3d, csmri, radial_mri).
IMAGES, DATA = 6, 7
GB = 1e9

log = logging.getLogger(__name__)


class Footprint(NamedTuple):
    """Memory that a run needs, in bytes.

    Attributes:
        volumes: for images and measured values.
        image: for one image in the network, while sampling.
        gradient: for a gradient step of the adaptation.
    """

    volumes: int
    image: int
    gradient: int

    @property
    def least(self) -> int:
        """With one image at a time."""
        return self.volumes + max(self.image, self.gradient)


def footprint(
    measurement: Measurement, denoiser: Denoiser, adaptation: Adaptation, planes: tuple[Plane, ...], samples: int
) -> Footprint:
    """Estimate the memory of a run; the arguments are those of `ReverseDiffusion`."""
    y, channels, (slices, height, width) = measurement.y, measurement.operator.channels, measurement.operator.shape
    sampling = bytes_per_pixel(denoiser.network, channels, y.device)
    training = bytes_per_pixel(denoiser.network, channels, y.device, training=True) if adaptation.images_at_once else 0
    axes = {"s": slices, "c": channels, "h": height, "w": width}
    largest = max(axes[rows] * axes[columns] for *_, rows, columns in (AXES[plane].split() for plane in planes))
    return Footprint(
        volumes_of(measurement, IMAGES * samples),
        int(sampling * largest),
        int(training * adaptation.images_at_once * height * width),
    )


def fit_into_memory(needed: Footprint, measurement: Measurement, denoiser: Denoiser) -> None:
    """Lower the batch size of the denoiser until the run fits into the memory of its device.

    Raises:
        InputError: it does not fit even with one image at a time.
    """
    free = require(needed.least, needed.volumes, measurement)
    size = max(1, (free - needed.volumes) // needed.image)
    if size < denoiser.batches.size:
        log.warning("memory is short: %d images at once instead of %d", size, denoiser.batches.size)
        denoiser.batches.size = size


def volumes_of(measurement: Measurement, images: int) -> int:
    """Memory for images and measured values, in bytes.

    Args:
        measurement: of the volume.
        images: copies of the volume at once.
    """
    y, (slices, height, width) = measurement.y, measurement.operator.shape
    volume = 4 * slices * measurement.operator.channels * height * width
    return images * volume + DATA * y.numel() * y.element_size()


def require(needed: int, volumes: int, measurement: Measurement) -> int:
    """Refuse a run that needs more memory than is free.

    Args:
        needed: in bytes.
        volumes: the part of it that grows with the number of slices.
        measurement: of the volume.

    Returns:
        The memory that is free, in bytes.

    Raises:
        InputError: there is too little.
    """
    free = available_memory(measurement.y.device)
    if needed > free:
        slices = len(measurement)
        fitting = int(slices * (free - needed + volumes) / volumes)
        advice = f"lower data.slices to {fitting}" if 0 < fitting < slices else "lower data.size"
        raise InputError(
            f"the run needs about {needed / GB:.2g} GB of memory, {free / GB:.2g} GB are free; {advice}, or use a "
            "machine with more"
        )
    return free
