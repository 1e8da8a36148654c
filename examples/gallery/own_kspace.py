"""Reconstruct the k-space of several coils, without coil maps: they are estimated from its centre."""

from pathlib import Path

import numpy as np
from head import head, show

import ddip_pl
from ddip_pl.data.measured import MeasuredDataModule

truth = np.concatenate([head(), 0.3 * head()], axis=1) / 1.09**0.5  # real and imaginary part
A = ddip_pl.SENSE((8, 128, 128), ddip_pl.RandomLines(acceleration=3, centre=0.2), ddip_pl.Birdcage(coils=6))

# Your data: (slices, coils, ky, kx), complex, 0 where not measured.
random = np.random.default_rng(0)
kspace = A(truth)
kspace += 0.01 * (kspace != 0) * (random.normal(size=kspace.shape) + 1j * random.normal(size=kspace.shape)) / 2**0.5
np.save("kspace.npy", kspace.astype(np.complex64))

# Estimates coil maps and noise level, and scales the intensities.
measurement, frame = MeasuredDataModule("kspace.npy").read(Path("kspace.npy"))
shown = {}
for method, settings in {"fbp": {}, "dds": {"sampler.steps": 20}}.items():
    result = ddip_pl.load_method(method, **settings).reconstruct(measurement, frame)
    shown["CG-SENSE" if method == "fbp" else method] = result.volume.numpy()
show({**shown, "truth": truth}, "own_kspace.png")
