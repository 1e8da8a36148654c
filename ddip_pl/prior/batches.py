"""Many images in batches, which are halved when the device runs out of memory."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

log = logging.getLogger(__name__)


class Batches:
    """The batches that images are worked on in.

    Args:
        size: images at once; halved whenever a batch does not fit into the memory of the device.
    """

    def __init__(self, size: int):
        self.size = size

    def map(self, work: Callable[[slice], T], count: int) -> list[T]:
        """The results of `work` for one batch after the other.

        Args:
            work: on the images with these indices; if it raises `torch.OutOfMemoryError`, it is called again for half
                of them, so it must leave nothing behind.
            count: number of images.

        Raises:
            torch.OutOfMemoryError: there is too little memory for a single image.
        """
        results: list[T] = []
        first = 0
        while first < count:
            last = min(first + self.size, count)
            try:
                results.append(work(slice(first, last)))
            except torch.OutOfMemoryError:
                if last - first == 1:
                    raise
                self.size = (last - first) // 2
                log.warning("out of memory with %d images at once; going on with %d", last - first, self.size)
            else:
                first = last
        return results
