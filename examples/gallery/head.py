"""A head of ellipsoids, after Shepp & Logan (1974), in place of your own volume, and pictures of it."""

from collections.abc import Mapping

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# centre, half-axes, turn in degrees, and what each ellipsoid adds to the ones below it
ELLIPSOIDS = [
    ((0.00, 0.00, 0.00), (0.69, 0.92, 0.81), 0, 1.0),
    ((0.00, -0.02, 0.00), (0.66, 0.87, 0.78), 0, -0.75),
    ((0.22, 0.00, 0.00), (0.11, 0.31, 0.22), -18, -0.15),
    ((-0.22, 0.00, 0.00), (0.16, 0.41, 0.28), 18, -0.15),
    ((0.00, 0.35, -0.05), (0.21, 0.25, 0.41), 0, 0.2),
    ((0.00, -0.10, 0.05), (0.05, 0.05, 0.10), 0, 0.25),
    ((-0.08, -0.60, 0.00), (0.05, 0.03, 0.05), 0, 0.25),
    ((0.06, -0.60, 0.00), (0.02, 0.05, 0.05), 0, 0.25),
]


def head(slices: int = 8, size: int = 128) -> np.ndarray:
    """`(slices, 1, size, size)` in [0, 1], float32."""
    z, y, x = np.meshgrid(np.linspace(-0.2, 0.2, slices), *2 * [np.linspace(-1, 1, size)], indexing="ij")
    volume = np.zeros((slices, size, size))
    for (cx, cy, cz), (ax, ay, az), turn, value in ELLIPSOIDS:
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        u, v = cos * (x - cx) + sin * (y - cy), cos * (y - cy) - sin * (x - cx)
        volume += value * ((u / ax) ** 2 + (v / ay) ** 2 + ((z - cz) / az) ** 2 <= 1)
    return volume[:, None].clip(0, 1).astype(np.float32)


def show(images: Mapping[str, np.ndarray], path: str, brightest: float = 0.7) -> None:
    """Save the central slices of volumes `(slices, channels, height, width)` side by side."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.6 * len(images), 3.2), layout="constrained")
    for axis, (name, volume) in zip(axes, images.items(), strict=True):
        axis.imshow(np.linalg.norm(volume[len(volume) // 2], axis=0), cmap="gray", vmin=0, vmax=brightest)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)
