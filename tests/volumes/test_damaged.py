"""Volumes that are damaged, claim what they do not hold, or refer to other files."""

import gzip
import resource
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from fuzz.formats import make_series

from ddip_pl.errors import InputError
from ddip_pl.scans.files import read_scan
from ddip_pl.volumes.files import read_volume, volume_name
from ddip_pl.volumes.frame import folder_name

VOXELS = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    return path


def test_every_flipped_bit_of_compressed_voxels_is_found(packed: Path) -> None:
    """Each bit after the gzip header, in which only notes are free."""
    expected, content = read_volume(packed).data, packed.read_bytes()
    start = 10 + len("scan.nii") + 1 if content[3] & 8 else 10
    for place in range(start, len(content), 3):
        packed.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = read_volume(packed).data
        except InputError:
            continue
        assert np.array_equal(found, expected)  # a bit that means nothing


@pytest.mark.parametrize("change", ["checksum", "length", "cut", "more", "zeros"])
def test_the_end_of_a_compressed_volume(packed: Path, change: str) -> None:
    content = packed.read_bytes()
    packed.write_bytes({
        "checksum": content[:-8] + b"wxyz" + content[-4:], "length": content[:-4] + b"wxyz", "cut": content[:-3],
        "more": content + gzip.compress(bytes(2**22)), "zeros": content + bytes(100),
    }[change])  # fmt: skip
    if change == "zeros":  # padding of tapes and block devices
        assert np.array_equal(read_volume(packed).data, VOXELS)
        return
    with pytest.raises(InputError, match=r"scan\.nii\.gz: not a readable NIfTI file"):
        read_volume(packed)


def claims(path: Path, shape: tuple[int, ...]) -> None:
    """Let a header claim another shape."""
    content = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(content[:348])
    header["dim"][: len(shape) + 1] = len(shape), *shape
    path.with_suffix("").write_bytes(header.binaryblock + content[348:])
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


def write_npy(path: Path, shape: str) -> None:
    path.mkdir()
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (path / "000.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(400))


def test_claims_are_refused_before_memory_is_taken(packed: Path, tmp_path: Path) -> None:
    claims(packed, (2000, 2000, 200))
    write_npy(tmp_path / "slices", "(30000, 30000)")
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file.create_dataset("ct", (1000, 1000, 1000), "f4", chunks=(64, 64, 64), compression="gzip")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.attrs.update(operator="parallel_beam", detector_spacing=1.0, pixel_size=1.0, image_size=20000)
        file["data"], file["angles"] = np.ones((2, 5, 12)), np.arange(5.0)
    make_series(tmp_path / "series")
    for file in (tmp_path / "series").iterdir():  # rows and columns, each 2 bytes after a tag, type and length
        content = file.read_bytes()
        for tag in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
            place = content.index(tag) + len(tag)
            content = content[:place] + b"\xff\xff" + content[place + 2 :]
        file.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (packed, packed.with_suffix(""), tmp_path / "slices", tmp_path / "volume.h5", tmp_path / "series"):
        with pytest.raises(InputError, match=f"volume {path}: "):
            read_volume(path)
    with pytest.raises(InputError, match=r"an image of this size claims 3\.2e\+09 bytes"):
        read_scan(tmp_path / "scan.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("kind", ["link", "chained", "external", "virtual"])
def test_hdf5_files_that_refer_to_others(tmp_path: Path, kind: str) -> None:
    other, path = tmp_path / "other.h5", tmp_path / "scan.h5"
    with h5py.File(other, "w") as file:
        file["ct"] = VOXELS
    (tmp_path / "raw").write_bytes(VOXELS.tobytes())
    with h5py.File(path, "w") as file:
        if kind == "link":
            file["ct"] = h5py.ExternalLink("other.h5", "/ct")
        elif kind == "chained":
            file["group/ct"], file["ct"] = h5py.ExternalLink("other.h5", "/ct"), h5py.SoftLink("/group/ct")
        elif kind == "external":
            file.create_dataset("ct", VOXELS.shape, "f4", external=[(str(tmp_path / "raw"), 0, VOXELS.nbytes)])
        else:
            layout = h5py.VirtualLayout(VOXELS.shape, "f4")
            layout[:] = h5py.VirtualSource("other.h5", "ct", VOXELS.shape)
            file.create_virtual_dataset("ct", layout)
    with h5py.File(path) as file:
        assert np.array_equal(file["ct"][()], VOXELS)  # the library follows it
    for read in (read_volume, read_scan):
        with pytest.raises(InputError, match="into this file"):
            read(path)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("scan 1", "scan 1"), ("Kopf-Übersicht", "Kopf-Übersicht"), ("last.ckpt", "last-ckpt"), ("..", "volume"),
        ("", "volume"), ("../../etc", "-..-etc"), (".hidden", "hidden"), ("a\nb\0c", "a-b-c"), ("n" * 300, "n" * 100),
        ("ü" * 300, "ü" * 50), (" ", "volume"), ("a\udcff", "a?"),
    ],
)  # fmt: skip
def test_names_of_folders(tmp_path: Path, given: str, name: str) -> None:
    assert folder_name(given) == name
    (tmp_path / name).mkdir()
    assert folder_name(name) == name


def test_a_volume_is_not_named_like_the_checkpoint() -> None:
    assert volume_name("last.ckpt.nii.gz") == "last-ckpt"


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04" + bytes(60), b"\x80\x04N.", b"\x1f\x8b" + bytes(60)]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.h5", "a.npy", "a.dcm", "folder"])
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "000.npy").write_bytes(content)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"volume {path}: "):
        read_volume(path)
