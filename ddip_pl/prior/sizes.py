"""Sizes of images that suit a prior (docs/sizes.md)."""

SMALLEST, LARGEST = 0.5, 4  # relative to the size of the prior


def unsuitable(height: int, width: int, size: int) -> str | None:
    """A warning about images whose size is far from the one that the prior is trained for, or None."""
    if SMALLEST * size <= max(height, width) <= LARGEST * size:
        return None
    return (
        f"images of {height} x {width} pixels are far from the prior's {size} x {size}, results may suffer; "
        f"set data.size to {size}, or train a prior near this size with ddip-pl fit (docs/sizes.md)"
    )
