"""Measure and reconstruct a NIfTI file on the command line, and read the results."""

import json
import subprocess

import nibabel as nib
import numpy as np
from head import head, show

# Your volume: NIfTI, DICOM and others (docs/volumes.md).
truth = head()
nib.save(nib.Nifti1Image(truth[:, 0].transpose(2, 1, 0), np.diag([2.0, 2.0, 4.0, 1.0])), "head.nii.gz")

shown = {}
for method in ("admm_tv", "dds"):
    command = f"ddip-pl test --config sv_ct_noisy --config {method} --data.path head.nii.gz --output runs/{method}"
    command += " --data.window [0,1]"  # the intensities to show; without it, they are taken for Hounsfield units
    command += " --config fast" if method == "dds" else ""  # 16 diffusion steps instead of 80
    subprocess.run(command.split(), check=True)

    folder = f"runs/{method}/head"  # open report.html in it with a browser
    with open(f"{folder}/metrics.json") as file:
        name = f"{method}\n{json.load(file)['psnr']:.1f} dB"
    image = nib.as_closest_canonical(nib.load(f"{folder}/reconstruction.nii.gz"))
    shown[name] = image.get_fdata().transpose(2, 1, 0)[:, None]
show({**shown, "truth": truth}, "first_reconstruction.png")
