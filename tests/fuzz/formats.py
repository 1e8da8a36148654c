"""A small valid file of every format that is read, what reading it gives, and edits that only this format allows."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import torch
from helpers import make_network
from PIL import Image
from pydicom import dcmread
from scipy.io import savemat
from twix import block, header, write

from ddip_pl.adaptation.lora import LoRA, LoraWeights
from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.data.measured import MeasuredDataModule
from ddip_pl.methods.configs import with_bases
from ddip_pl.physics import ConeBeamCT, FanBeamCT, NonCartesianMRI, ParallelBeamCT, Radial, RandomPoints, SingleCoilMRI
from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator
from ddip_pl.prior.checkpoint import describe, load_prior, save_prior
from ddip_pl.scans.bart import write_cfl
from ddip_pl.scans.hdf5 import write_measurement
from ddip_pl.volumes.dicom import write_dicom
from ddip_pl.volumes.files import read_volume
from ddip_pl.volumes.frame import Frame

Random = np.random.Generator
JUNK: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 65535, 20000, 2**31 - 1, -(2**31), 2**40, 0.5, -0.5, 1e-300, 1e300, float("nan"),
    float("inf"), "", "x", "../../x", "last.ckpt", "n" * 300,
)  # fmt: skip
NETWORK = {"image_size": 16, "channel_mult": (1,), "attention_resolutions": (), "num_heads": 2}
VOXELS = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: of the file or folder.
        make: writes a valid one.
        read: what reading it gives, as arrays.
        edit: changes something inside, so that the file stays one of this format.
        checksum: whether the format has one, so that changed bytes never change what is read.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], list[np.ndarray]]
    edit: Callable[[Path, Random], None] | None = None
    checksum: bool = False


def pick(random: Random, values: Any) -> Any:
    values = list(values)
    return values[random.integers(len(values))]


# --- volumes ------------------------------------------------------------------------------------------------------


def volume(path: Path) -> list[np.ndarray]:
    found = read_volume(path)
    return [found.data, found.affine]


def make_nifti(path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.diag([2.0, 2, 3, 1])), path)


def edit_nifti(path: Path, random: Random) -> None:
    """A field of the header."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    fields = nib.nifti1.header_dtype.fields
    kind, start = fields[pick(random, fields)][:2]
    value = random.bytes(kind.itemsize)
    if kind.base.kind in "if":
        with np.errstate(all="ignore"):
            junk = np.array([v for v in JUNK if not isinstance(v, str)], float)
            value = np.nan_to_num(random.choice(junk, kind.shape)).astype(kind.base).tobytes()
    content[start : start + len(value)] = value
    path.write_bytes(gzip.compress(content) if packed else content)


def make_series(path: Path) -> None:
    write_dicom(path, VOXELS, np.diag([2.0, 2, 3, 1]))


def edit_dicom(path: Path, random: Random) -> None:
    file = pick(random, sorted(path.iterdir()))
    header = dcmread(file)
    element = pick(random, header)
    element._value = pick(random, [*JUNK, [1.0, 2.0], [1e300] * 3])
    try:
        header.save_as(file)
    except Exception:  # not a value of this element's type
        del header[element.tag]
        header.save_as(file)


def make_slices(path: Path) -> None:
    path.mkdir()
    for number, image in enumerate(VOXELS):
        np.save(path / f"{number:03d}.npy", image)


def edit_array(path: Path, random: Random) -> None:
    """A number or a word of the header."""
    file = pick(random, sorted(path.iterdir())) if path.is_dir() else path
    content = file.read_bytes()
    words = list(re.finditer(rb"\d+|'[^']*'|True|False", content[10:128]))
    word = pick(random, words)
    new = pick(
        random, [str(v).encode() for v in JUNK] + [b"'<f8'", b"'|O'", b"'<U99999'", b"True", b"((" * 50, b"9" * 25]
    )
    header = content[10:128][: word.start()] + new + content[10:128][word.end() :]
    file.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + content[128:])


def make_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("ct", data=VOXELS, compression="gzip")
        file["ct"].attrs.update(affine=np.diag([2.0, 2, 3, 1]), units="HU")


# --- measurements -------------------------------------------------------------------------------------------------


def measurement(path: Path) -> list[np.ndarray]:
    """As `predict` reads it before the run starts."""
    module = MeasuredDataModule(str(path), sigma_y=0.01)
    module.setup("predict")
    arrays = []
    for measured, frame in module.scans:  # an edited counter can make two volumes of one
        assert len(frame.name) < 200
        assert not {"/", "\0"} & set(frame.name)
        arrays += [measured.y.numpy(), measured.operator.adjoint(measured.y).numpy(), frame.affine]
    return arrays


def own(make: Callable[[], LinearOperator]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        operator = make()
        x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
        write_measurement(path, Measurement(operator(x), operator, 0.01), Frame("scan", np.diag([2.0, -2, 3, 1])))

    return write


HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace><matrixSize><x>16</x><y>10</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>400</x><y>100</y><z>5</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>8</x><y>10</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>200</x><y>100</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>9</maximum><center>5</center>
      </kspace_encoding_step_1></encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>"""
KSPACE = (np.random.default_rng(1).normal(size=(2, 1, 16, 10)) + 1j).astype(np.complex64)


def make_fastmri(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"], file["ismrmrd_header"], file["mask"] = KSPACE, HEADER, np.ones(10, np.float32)


def make_ismrmrd(path: Path) -> None:
    with ismrmrd.Dataset(str(path), "dataset") as dataset:
        dataset.write_xml_header(HEADER.encode())
        for number, plane in enumerate(KSPACE):
            for step in range(10):
                line = ismrmrd.Acquisition.from_array(
                    plane[..., step], center_sample=8, position=(0.0, 0.0, 5.0 * number), read_dir=(1.0, 0, 0),
                    phase_dir=(0.0, 1, 0), slice_dir=(0.0, 0, 1),
                )  # fmt: skip
                line.idx.kspace_encode_step_1, line.idx.slice = step, number
                dataset.append_acquisition(line)


def make_bart(path: Path) -> None:
    """A folder with k-space and coil maps."""
    write_cfl(path / "scan", KSPACE[0].transpose(1, 2, 0)[:, :, None])
    write_cfl(path / "scan_maps", np.ones((16, 10, 1, 1)))


def make_bart_radial(path: Path) -> None:
    """A folder with samples along three spokes, and their positions."""
    angles, radii = np.arange(3) * np.pi / 3, np.arange(-8, 8)
    positions = np.stack([np.outer(radii, np.cos(angles)), np.outer(radii, np.sin(angles)), np.zeros((16, 3))])
    write_cfl(path / "scan", KSPACE[0, 0, None, :, :3, None])
    write_cfl(path / "scan_traj", positions)


def bart(path: Path) -> list[np.ndarray]:
    return measurement(path / "scan.cfl")


def edit_bart(path: Path, random: Random) -> None:
    """A dimension, and sometimes values that fill it."""
    header = pick(random, sorted(path.glob("*.hdr")))
    words = header.read_text().split()
    words[random.integers(2, len(words))] = str(pick(random, JUNK))
    header.write_text(" ".join(words[:2]) + "\n" + " ".join(words[2:]) + "\n")
    if random.random() < 0.3:
        values = header.with_suffix(".cfl")
        content = np.fromfile(values, np.complex64)
        content[random.integers(len(content))] = pick(random, [np.nan, np.inf, 1e30, 0])
        content.tofile(values)


def make_twix(path: Path) -> None:
    lines = np.random.default_rng(3).normal(size=(20, 2, 32, 2)).astype(np.float32).view(np.complex64)[..., 0]
    write(path, ([block(samples, Lin=line) for line, samples in enumerate(lines)], header()))


def make_tigre(path: Path) -> None:
    geometry = {
        "DSD": 30.0, "DSO": 20.0, "nDetector": [12.0, 4.0], "dDetector": [1.0, 1.0], "nVoxel": [8.0, 8.0, 3.0],
        "dVoxel": [0.5, 0.5, 0.5], "mode": "cone", "offDetector": [0.1, 0.0],
    }  # fmt: skip
    values = np.random.default_rng(4).random((4, 12, 5))
    savemat(path, {"geo": geometry, "angles": np.arange(5.0), "projections": values})


PHOTONS = np.random.default_rng(2).integers(500, 1000, (6, 2, 12)).astype(np.uint16)  # views, rows, bins


def make_dxchange(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["exchange/data"], file["exchange/theta"] = PHOTONS, np.arange(6) * 30.0
        file["exchange/data_white"], file["exchange/data_dark"] = PHOTONS[:2] + 500, PHOTONS[:2] // 100
        file["exchange/theta"].attrs["units"] = "degrees"
        file.attrs["implements"] = "exchange"


def make_nxtomo(path: Path) -> None:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry["definition"] = "NXtomo"
        entry["instrument/detector/data"] = np.concatenate([PHOTONS // 100, PHOTONS + 500, PHOTONS])
        entry["instrument/detector/image_key"] = np.repeat([2, 1, 0], 6)
        entry["instrument/detector/x_pixel_size"] = 1e-3
        entry["sample/rotation_angle"] = np.tile(np.arange(6) * 30.0, 3)
        entry["sample/rotation_angle"].attrs["units"] = "deg"


def make_tiff(path: Path) -> None:
    path.mkdir()
    for number, image in enumerate(PHOTONS):
        Image.fromarray(image).save(path / f"view_{number}.tif")
    Image.fromarray(PHOTONS[0] + np.uint16(500)).save(path / "flat_0.tif")
    np.savetxt(path / "angles.txt", np.arange(6) * 30.0)


def edit_angles(path: Path, random: Random) -> None:
    words = (path / "angles.txt").read_text().split()
    words[random.integers(len(words))] = str(pick(random, JUNK))
    (path / "angles.txt").write_text("\n".join(words))


def edit_hdf5(path: Path, random: Random) -> None:
    """An attribute, a dataset, a link, or a number in a text."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name, attributes = pick(random, names), pick(random, [file, *file.values()]).attrs
        values, action = np.asarray(file[name][()]), random.integers(10)
        if action < 3 and len(attributes):
            key = pick(random, attributes)
            attributes[key] = pick(random, [*JUNK, [1.0, 2.0], np.eye(4) * 1e300, np.zeros((4, 4)), h5py.Empty("f")])
        elif action == 3 and len(attributes):
            del attributes[pick(random, attributes)]
        elif action == 4:
            file["also"] = file[name]  # a second name for it
            del file[name]
            file[name] = pick(random, [h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink(f"/{name}"),
                                       h5py.SoftLink("/nowhere"), h5py.ExternalLink(path.name, "/also")])  # fmt: skip
        elif action == 5:
            del file[name]
            shape = pick(random, [(2**20, 2**12), (2, 2**15, 2**15), (2**40,), (3, 2**12, 2**12, 2), ()])
            chunks = tuple(min(n, 64) for n in shape) or None
            file.create_dataset(name, shape, pick(random, ["f4", "c8", "u1"]), chunks=chunks)
        elif action == 6:
            del file[name]
            file.create_dataset(name, (4, 4, 4), "u1", external=[("/etc/passwd", 0, 64)])
        elif values.dtype.names and "head" in values.dtype.names:  # readouts of an ISMRMRD file
            line, field = random.integers(len(values)), pick(random, values["head"].dtype.names)
            part = values["head"][field]
            if part.dtype.names:
                part = part[pick(random, part.dtype.names)]
            with np.errstate(all="ignore"):
                part[line] = np.nan_to_num(pick(random, [v for v in JUNK if not isinstance(v, str)])).astype(part.dtype)
            file[name][...] = values
        elif values.dtype.kind in "OS":
            flat = np.ravel(values)[0]
            text = flat.decode() if isinstance(flat, bytes) else str(flat)
            numbers = list(re.finditer(r"(?<=>)\d+(?=<)", text)) or list(re.finditer(".*", text))
            number = pick(random, numbers)
            text = text[: number.start()] + str(pick(random, JUNK)) + text[number.end() :]
            file[name][() if values.ndim == 0 else 0] = text if random.random() < 0.9 else text[:-30]
        else:
            del file[name]
            with np.errstate(all="ignore"):
                kind = random.choice(["S4", "f8", "i1"])
                file[name] = pick(random, [
                    values * np.nan, values * 1e30, values[..., None], np.ravel(values), np.zeros(3), values * 0,
                    values.real.astype(kind), np.zeros((0, 3)), np.ones((200, 3, 2, 5), "c8"),
                ])  # fmt: skip


# --- weights ------------------------------------------------------------------------------------------------------


def prior(path: Path) -> list[np.ndarray]:
    network = load_prior(path)
    return [weight.numpy() for weight in network.state_dict().values()]


def make_prior(path: Path) -> None:
    save_prior(path, make_network(**NETWORK), card={})


def changed(settings: dict[str, Any], random: Random) -> dict[str, Any]:
    values = [*JUNK, None, [], [1, 1], [1e9, 10**9], [2, "x"], {"a": 1}, True, "1,2", 10**30, [1] * 1000]
    return settings | {pick(random, settings): pick(random, values)}


def edit_prior(path: Path, random: Random) -> None:
    """A setting of the network, or an entry of the header; the checksum is taken out."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"].pop("sha256")
    if random.random() < 0.7:
        settings = changed(json.loads(header["__metadata__"]["config"]), random)
        header["__metadata__"]["config"] = json.dumps(settings)
    else:
        name = pick(random, header)
        header[name] = changed(header[name], random)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def make_checkpoint(path: Path) -> None:
    network = make_network(**NETWORK)
    weights = {f"network.{name}": weight.contiguous() for name, weight in network.state_dict().items()}
    torch.save({"state_dict": weights, "prior": describe(network), "loops": {}, "epoch": 3}, path)


def edit_checkpoint(path: Path, random: Random) -> None:
    content = torch.load(path, weights_only=True)
    part = pick(random, [content, content["prior"], content["state_dict"]])
    nested: Any = []
    for _ in range(60):
        nested = [nested, nested]
    part[pick(random, part)] = pick(random, [
        *JUNK, None, [], nested, torch.zeros(3), torch.zeros(1).expand(10**9), torch.zeros(2**30, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,)),
    ])  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=bool(random.random() < 0.7))


def lora(path: Path) -> list[np.ndarray]:
    weights = LoraWeights.load(path)
    return [weight.numpy() for _, weight in sorted(weights.tensors.items())]


def make_lora(path: Path) -> None:
    network = make_network(**NETWORK)
    adapter = LoRA(network, rank=2)
    LoraWeights(adapter.state_dict(), rank=2).save(path.parent)


def edit_lora(path: Path, random: Random) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), random)))


# --- settings -----------------------------------------------------------------------------------------------------

SETTINGS = """\
task: sv_ct
model:
  batch_size: 4
  sampler: {steps: 3, start: 500}
  estimator:
    class_path: ddip_pl.estimators.DDS
    init_args: {iterations: 5}
data:
  path: volume.nii.gz
  slices: 2
  sigma_y: 0.01
  window: [0, 1]
  operator: {class_path: ddip_pl.physics.ParallelBeamCT, init_args: {angles: 30}}
"""


def make_settings(path: Path) -> None:
    path.write_text(SETTINGS)


def settings(path: Path) -> list[np.ndarray]:
    arguments = [f"--config={file}" for file in with_bases(path)]
    make_parser("test").read(arguments)
    return []


def edit_settings(path: Path, random: Random) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    words = list(re.finditer(r"[\w.]+", SETTINGS))
    word = pick(random, words)
    new = pick(random, [
        *map(str, JUNK), "2024-99-99", "!!python/object:os.system x", "[" * 3000, "&a [*a]", "${model}",
        "${oc.env:HOME}", "{a: 1}", "null", "0x_", "12:99:99", "? ", "<<: 1", "- 1",
    ])  # fmt: skip
    text = SETTINGS[: word.start()] + new + SETTINGS[word.end() :]
    path.write_text(bomb + text if random.random() < 0.02 else text)


FORMATS = {
    "nifti": Format("scan.nii", make_nifti, volume, edit_nifti),
    "nifti gz": Format("scan.nii.gz", make_nifti, volume, edit_nifti, checksum=True),
    "dicom": Format("series", make_series, volume, edit_dicom),
    "npy slices": Format("slices", make_slices, volume, edit_array),
    "hdf5 volume": Format("volume.h5", make_hdf5, volume, edit_hdf5),
    "parallel beam": Format("scan.h5", own(lambda: ParallelBeamCT((2, 8, 8), 5, detectors=12)), measurement, edit_hdf5),
    "fan beam": Format("scan.h5", own(lambda: FanBeamCT((2, 8, 8), 5, detectors=12)), measurement, edit_hdf5),
    "cone beam": Format("scan.h5", own(lambda: ConeBeamCT((2, 8, 8), 5)), measurement, edit_hdf5),
    "cartesian": Format("scan.h5", own(lambda: SingleCoilMRI((2, 8, 8), RandomPoints(2))), measurement, edit_hdf5),
    "radial": Format("scan.h5", own(lambda: NonCartesianMRI((2, 8, 8), Radial(5))), measurement, edit_hdf5),
    "fastmri": Format("scan.h5", make_fastmri, measurement, edit_hdf5),
    "ismrmrd": Format("scan.h5", make_ismrmrd, measurement, edit_hdf5),
    "bart": Format("bart", make_bart, bart, edit_bart),
    "bart radial": Format("bart", make_bart_radial, bart, edit_bart),
    "twix": Format("scan.dat", make_twix, measurement),
    "tigre": Format("scan.mat", make_tigre, measurement),
    "dxchange": Format("scan.h5", make_dxchange, measurement, edit_hdf5),
    "nxtomo": Format("scan.h5", make_nxtomo, measurement, edit_hdf5),
    "tiff": Format("tiff", make_tiff, measurement, edit_angles),
    "npy k-space": Format("scan.npy", lambda path: np.save(path, KSPACE), measurement, edit_array),
    "prior": Format("prior.safetensors", make_prior, prior, edit_prior, checksum=True),
    "checkpoint": Format("last.ckpt", make_checkpoint, prior, edit_checkpoint, checksum=True),
    "lora": Format("lora", make_lora, lora, edit_lora, checksum=True),
    "settings": Format("settings.yaml", make_settings, settings, edit_settings),
}
