"""Run a small sweep from Python, keep every run in its folder, and read the folders back."""

from pathlib import Path

import numpy as np
from head import head, plt

import ddip_pl
from ddip_pl.results.tables import read_runs

truth = head()
A = ddip_pl.ParallelBeamCT((8, 128, 128), angles=30)
y = A(truth) + 0.005 * np.random.default_rng(0).normal(size=A.range).astype(np.float32)
for strength in (0.01, 0.03, 0.1, 0.3):
    result = ddip_pl.reconstruct(
        y, A, sigma_y=0.005, method="admm_tv", strength=strength, reference=truth, progress=False
    )
    result.save(f"sweep/{strength}", task="30 angles", method="admm_tv")

runs = read_runs([Path("sweep")])  # the command line writes the same folders
figure, axis = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
axis.semilogx([float(run.folder.name) for run in runs], [run.metrics["psnr"] for run in runs], "o-")
axis.set(xlabel="strength of the total variation", ylabel="PSNR (dB)")
figure.savefig("read_a_sweep.png", dpi=110)
