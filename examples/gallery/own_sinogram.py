"""Reconstruct a sinogram that is a NumPy array of line integrals."""

import numpy as np
from head import head, show

import ddip_pl

truth, pixel = head(), 2.0  # mm
A = ddip_pl.ParallelBeamCT((8, 128, 128), angles=30)
unit = A.unit((pixel, pixel))

# Your data: -log(I / I_0), which is attenuation times mm, of shape (slices, angles, detectors).
sinogram = unit * A(truth)
sinogram += 0.005 * sinogram.max() * np.random.default_rng(0).normal(size=sinogram.shape).astype(np.float32)

shown = {}
for method, settings in {"fbp": {}, "admm_tv": {"strength": 0.1}, "dds": {"sampler.steps": 20}}.items():
    # The noise level is estimated, as sigma_y is not given.
    result = ddip_pl.reconstruct(sinogram / unit, A, method=method, progress=False, **settings)
    shown[f"{method}\n{result.metrics(truth)['psnr']:.1f} dB"] = result.images
show({**shown, "truth": truth}, "own_sinogram.png")
