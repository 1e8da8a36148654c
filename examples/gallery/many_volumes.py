"""Reconstruct every scan in a folder on the command line, two at a time."""

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from head import head, show

import ddip_pl
from ddip_pl.physics.measurement import Measurement
from ddip_pl.scans.hdf5 import write_measurement
from ddip_pl.volumes.frame import Frame

# Your scans: files of any format in docs/measurements.md, here in the package's own.
A = ddip_pl.ParallelBeamCT((4, 128, 128), angles=30)
random = np.random.default_rng(0)
for sigma_y in (0.005, 0.01, 0.02, 0.04):
    y = A(head(slices=4)) + sigma_y * random.normal(size=A.range)
    scan = Measurement(torch.tensor(y, dtype=torch.float32), A, sigma_y)
    frame = Frame(f"noise_{sigma_y}", affine=np.diag([2.0, 2.0, 4.0, 1.0]))
    write_measurement(f"scans/{frame.name}.h5", scan, frame)

# Repeat the command after an interruption: scans with a result are left out. On GPUs, leave the accelerator out;
# in SLURM, add --trainer.num_nodes (docs/cluster.md).
command = "ddip-pl predict --config measured --config dds --config fast --data.path scans/*.h5 --output many"
subprocess.run([*command.split(), "--trainer.accelerator", "cpu", "--trainer.devices", "2"], check=True)

shown = {}
for folder in sorted(path.parent for path in Path("many").glob("*/reconstruction.nii.gz")):
    metrics = json.loads((folder / "metrics.json").read_text())
    image = nib.as_closest_canonical(nib.load(folder / "reconstruction.nii.gz"))
    shown[f"{folder.name}\nestimated {metrics['sigma_y']:.4f}"] = image.get_fdata().transpose(2, 1, 0)[:, None]
show(shown, "many_volumes.png")
