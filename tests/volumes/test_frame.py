"""Where an image belongs: its margin, its units and its place."""

from dataclasses import replace
from importlib.metadata import version

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from ddip_pl.volumes.frame import Frame

AFFINE = np.array([[0.0, 0, 3, -20], [2, 0, 0, 10], [0, -1.5, 0, 5], [0, 0, 0, 1]])
FRAME = Frame("scan", AFFINE, window=(-1000.0, 500.0), margin=(1, 2, 0, 3), units="HU")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(0))


def test_padding_is_taken_off():
    x = torch.zeros(2, 1, 6, 8)
    x[..., 1:4, :5] = 1
    assert torch.equal(FRAME.unpad(x), torch.ones(2, 1, 3, 5))
    assert torch.equal(Frame().unpad(x), x)


def test_distances():
    assert FRAME.spacing == (2, 1.5, 3)


def test_values_in_units(images):
    values = FRAME.in_units(images)
    assert values.shape == (4, 3, 5)
    for column, row, slice_ in (0, 0, 0), (3, 1, 2), (1, 2, 4):
        expected = images[slice_, 0, row, column].item() * 1500 - 1000
        assert values[column, row, slice_] == pytest.approx(expected, rel=1e-5)


def test_complex_values_by_magnitude(images):
    values = FRAME.in_units(torch.cat([0.6 * images, -0.8 * images], dim=1))
    np.testing.assert_allclose(values, FRAME.in_units(images), rtol=1e-5, atol=1e-3)


def test_nifti(images):
    found = FRAME.nifti(images)
    np.testing.assert_array_equal(found.affine, AFFINE)
    np.testing.assert_allclose(found.get_fdata(), FRAME.in_units(images))


def test_nifti_says_where_it_is_and_in_which_units(images, tmp_path):
    nib.save(FRAME.nifti(images), tmp_path / "a.nii.gz")
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_xyzt_units()[0] == "mm"
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), AFFINE)
    assert header["descrip"].item() == f"ddip-pl {version('ddip-pl')}, HU".encode()


def test_nifti_of_sheared_axes_has_no_quaternion(images):
    sheared = AFFINE.copy()
    sheared[1, 2] = 1
    header = replace(FRAME, affine=sheared).nifti(images).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_sform(), sheared)
