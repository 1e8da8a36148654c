"""What `VolumeWriter` writes, beyond what the command line's tests look at."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import torch

from ddip_pl.callbacks.writer import write_hdf5, write_volume
from ddip_pl.physics import Measurement, SingleCoilMRI
from ddip_pl.volumes.files import read_volume


def test_hdf5_keeps_place_units_and_phase_of_complex_images(tmp_path: Path) -> None:
    images = torch.randn(3, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    affine = torch.tensor([[0, 2.0, 0, 5], [-3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]], dtype=torch.float64)
    operator = SingleCoilMRI((8, 6), torch.ones(1, 8, 6, dtype=torch.bool), complex_image=True)
    measurement = Measurement(operator(images), operator, 0.01, "head", window=(0, 50), affine=affine, units="a.u.")
    write_hdf5(tmp_path / "x.h5", images, measurement)
    write_volume(tmp_path / "x.nii.gz", images, measurement)

    volume, nifti = read_volume(tmp_path / "x.h5"), read_volume(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(volume.data, nifti.data, rtol=1e-6)
    np.testing.assert_allclose(volume.affine, nifti.affine)
    assert volume.units == "a.u."
    with h5py.File(tmp_path / "x.h5") as file:
        values = file["complex"][...]
        np.testing.assert_allclose(file["complex"].attrs["affine"], affine)
    truth = 50 * (images[:, 0] + 1j * images[:, 1]).numpy()
    np.testing.assert_allclose(values, truth.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(np.abs(values), nib.load(tmp_path / "x.nii.gz").get_fdata(), rtol=1e-5)
