"""Reconstruct the k-space of several coils, without coil maps: they are estimated from its centre."""

from pathlib import Path

import numpy as np
from head import head, show

import ddip_pl
from ddip_pl.data.measured import MeasuredDataModule

truth = np.concatenate([head(), np.zeros_like(head())], axis=1)  # real and imaginary part
truth = np.stack([truth[:, 0], 0.3 * truth[:, 0]], axis=1) / 1.3**0.5  # with a phase
A = ddip_pl.SENSE((8, 128, 128), ddip_pl.RandomLines(acceleration=3, centre=0.2), ddip_pl.Birdcage(coils=6))

# Your data: (slices, coils, ky, kx), complex, 0 where not measured.
random = np.random.default_rng(0)
kspace = A(truth)
kspace += 0.01 * (kspace != 0) * (random.normal(size=kspace.shape) + 1j * random.normal(size=kspace.shape)) / 2**0.5
np.save("kspace.npy", kspace.astype(np.complex64))

measurement, frame = MeasuredDataModule("kspace.npy").read(Path("kspace.npy"))  # coil maps, noise level, intensities
shown = {}
for method, settings in {"fbp": {}, "dds": {"sampler.steps": 20}}.items():
    result = ddip_pl.load_method(method, **settings).reconstruct(measurement, frame)
    shown[{"fbp": "CG-SENSE"}.get(method, method)] = result.volume.numpy()
show({**shown, "truth": truth}, "own_kspace.png")
