"""When `VolumeWriter` refuses to write, where it writes, and what it leaves; `Result.save` writes the results."""

import errno
import shutil
import tempfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from lightning import Trainer

from ddip_pl.callbacks.writer import VolumeWriter
from ddip_pl.errors import InputError
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.results.result import Result
from ddip_pl.scans.scan import Scan
from ddip_pl.volumes.files import read_volume
from ddip_pl.volumes.frame import Frame


class Identity(LinearOperator):
    """`A x = x`, of complex images."""

    channels = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def make_result(**frame: object) -> Result:
    images = torch.randn(3, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    return Result(images, Measurement(images, Identity((3, 8, 6)), 0.01), frame=Frame("head", **frame))


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def test_hdf5_keeps_place_units_and_phase_of_complex_images(tmp_path: Path) -> None:
    affine = np.array([[0, 2.0, 0, 5], [-3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    result = make_result(window=(0, 50), affine=affine, units="a.u.")
    result.save(tmp_path / "head", hdf5=True)

    h5, nii = tmp_path / "head" / "reconstruction.h5", tmp_path / "head" / "reconstruction.nii.gz"
    volume, nifti = read_volume(h5), read_volume(nii)
    np.testing.assert_allclose(volume.data, nifti.data, rtol=1e-6)
    np.testing.assert_allclose(volume.affine, nifti.affine)
    assert volume.units == "a.u."
    with h5py.File(h5) as file:
        values = file["complex"][...]
        np.testing.assert_allclose(file["complex"].attrs["affine"], affine)
    truth = 50 * (result.images[:, 0] + 1j * result.images[:, 1]).numpy()
    np.testing.assert_allclose(values, truth.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(np.abs(values), nib.load(nii).get_fdata(), rtol=1e-5)


@pytest.mark.parametrize("dicom", [False, True])
def test_results_get_the_settings_of_the_run(tmp_path: Path, trainer: Trainer, capsys, dicom: bool) -> None:
    writer = VolumeWriter(tmp_path / "run", "ct", "mine", "model: mine\n", dicom=dicom, hdf5=True)
    result = make_result()
    writer.on_test_start(trainer, None)
    writer.on_test_batch_start(trainer, None, Scan(result.measurement, result.frame), 0)
    writer.on_test_batch_end(trainer, None, result, None, 0)
    writer.teardown(trainer, None, "test")
    folder = tmp_path / "run" / "head"
    assert writer.written == [folder]
    assert capsys.readouterr().out == f"head: files in {folder}\n"
    assert (folder / "dicom").is_dir() == dicom
    assert (folder / "reconstruction.h5").is_file()
    assert (folder / "config.yaml").read_text() == "model: mine\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["head"]


def test_what_cannot_be_written_is_refused_before_the_run(tmp_path: Path, trainer: Trainer) -> None:
    result, skewed = make_result(), make_result(affine=np.eye(4) + np.diag([0.5, 0, 0], 1))
    writer = VolumeWriter(tmp_path / "a" / "b", "ct", "mine", dicom=True)
    writer.on_test_start(trainer, None)
    with pytest.raises(InputError, match="not perpendicular"):
        writer.on_test_batch_start(trainer, None, Scan(skewed.measurement, skewed.frame), 0)
    writer.on_exception(trainer, None, InputError())
    assert list(tmp_path.iterdir()) == []
    writer.on_test_start(trainer, None)
    (tmp_path / "a" / "b" / "head").mkdir()
    with pytest.raises(InputError, match="is not a ddip-pl result"):
        writer.on_test_batch_start(trainer, None, Scan(result.measurement, result.frame), 0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        VolumeWriter(tmp_path / "file" / "x", "ct", "mine").on_test_start(trainer, None)


def test_a_folder_that_has_become_a_file_does_not_cost_the_volume(
    tmp_path: Path, trainer: Trainer, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result goes to the current folder, or to the one for temporary files if that has gone too."""
    result, here, temporary = make_result(), tmp_path / "here", tmp_path / "temporary"
    writer = VolumeWriter(tmp_path / "run", "ct", "mine")
    writer.on_test_start(trainer, None)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    writer.on_test_batch_end(trainer, None, result, None, 0)
    shutil.rmtree(here)
    writer.on_test_batch_end(trainer, None, result, None, 0)
    writer.teardown(trainer, None, "test")
    first, second = writer.written
    assert (first.parent.parent, second.parent.parent) == (here, temporary)
    assert read_volume(second / "reconstruction.nii.gz").data.shape == (6, 8, 3)
    out, error = capsys.readouterr()
    assert out == f"head: files in {first}\nhead: files in {second}\n"
    assert error.splitlines() == [f"ddip-pl: error: {line}" for line in writer.failures]
    assert f"head cannot be written to {tmp_path / 'run'}" in writer.failures[0]


def test_a_volume_that_cannot_be_written_anywhere_is_an_error(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Result, "save", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    writer = VolumeWriter(tmp_path / "run", "ct", "mine")
    writer.on_test_start(trainer, None)
    with pytest.raises(InputError, match="head could not be written anywhere"):
        writer.on_test_batch_end(trainer, None, make_result(), None, 0)
    writer.on_exception(trainer, None, InputError())
    assert list(tmp_path.iterdir()) == []
