"""ISMRMRD's HDF5 files (Inati et al. 2017), read with the package `ismrmrd`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from einops import rearrange

from ddip_pl.errors import InputError, reason
from ddip_pl.physics.fft import ifft
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.scans.header import Encoding, parse_header
from ddip_pl.scans.oversampling import UNITS, without_oversampling
from ddip_pl.scans.recording import Recording
from ddip_pl.scans.whitening import whitening
from ddip_pl.volumes.claims import check_claim
from ddip_pl.volumes.slices import span

Line = Any  # ismrmrd.Acquisition, one readout of all coils; the package is untyped

NO_IMAGE = (
    "NOISE_MEASUREMENT", "NAVIGATION_DATA", "PHASECORR_DATA", "HPFEEDBACK_DATA", "RTFEEDBACK_DATA", "DUMMYSCAN_DATA",
    "SURFACECOILCORRECTIONSCAN_DATA", "PHASE_STABILIZATION_REFERENCE", "PHASE_STABILIZATION",
)  # fmt: skip
ONE_IMAGE = ("contrast", "phase", "repetition", "set")  # counters that distinguish images of the same place
LPS_TO_RAS = np.array([-1, -1, 1])
UNEVEN = 0.02  # largest deviation of a slice from even spacing, as a fraction of the spacing


def is_ismrmrd(file: h5py.File) -> bool:
    """Whether a file contains ISMRMRD scans."""
    return bool(_groups(file))


def _groups(file: h5py.File) -> list[h5py.Group]:
    return [group for group in file.values() if isinstance(group, h5py.Group) and {"xml", "data"} <= set(group)]


def read_ismrmrd(file: h5py.File, slices: int | None, first: int | None) -> Recording:
    """Read one image: 2D slices, Cartesian or along a trajectory, or a Cartesian 3D slab.

    Noise readouts give the noise level and whiten the coils. Other readouts that do not belong to the image are
    skipped: navigators, separate calibration. Values measured several times are averaged. `center_sample` gives the
    centre of each echo; slices are sorted along `slice_dir`.

    Raises:
        InputError: the package is missing, the file is damaged, or its content is not supported.
    """
    name, groups = Path(file.filename).stem, _groups(file)
    if len(groups) > 1:
        names = ", ".join(group.name.strip("/") for group in groups)
        raise InputError(f"several scans ({names}); expected one, copy it to a separate file")
    try:
        import ismrmrd
        from ismrmrd.file import Container
    except ImportError as error:
        raise InputError("ISMRMRD files need a package that is missing; pip install 'ddip-pl[ismrmrd]'") from error
    try:
        xml, lines = groups[0]["xml"][0], Container(groups[0]).acquisitions[:]
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"damaged, or not ISMRMRD raw data ({reason(error)})") from error

    def flagged(line: Line, flag: str) -> bool:
        return line.is_flag_set(getattr(ismrmrd, f"ACQ_IS_{flag}"))

    header = parse_header(xml)
    left_out = NO_IMAGE if header.embedded else (*NO_IMAGE, "PARALLEL_CALIBRATION")
    noise = [line for line in lines if flagged(line, "NOISE_MEASUREMENT")]
    lines = [line for line in lines if not any(flagged(line, flag) for flag in left_out)]
    if not lines:
        raise InputError("no image readouts; expected more than noise and calibration")
    if any(flagged(line, "REVERSE") for line in lines):
        raise InputError("readouts in both directions (EPI), which need a phase correction; not supported")
    for counter in ONE_IMAGE:
        if (different := len({getattr(line.idx, counter) for line in lines})) > 1:
            raise InputError(f"{different} values of the counter '{counter}'; expected a single image")
    if len(coils := {line.active_channels for line in lines}) > 1:
        raise InputError(f"readouts of {sorted(coils)} coils; expected the same coils in all")
    sigma_y = _whiten(lines, noise, header)

    planes = [[line for line in lines if line.idx.slice == i] for i in sorted({line.idx.slice for line in lines})]
    planes, affine = _in_place(planes, header)
    if header.matrix[2] > 1 and (len(planes) > 1 or header.trajectory != "cartesian"):
        raise InputError(
            f"{len(planes)} slabs of {header.matrix[2]} partitions, {header.trajectory}; expected 2D slices, "
            f"or one Cartesian slab"
        )
    if header.matrix[2] > 1:
        data, count = _on_grid(planes, header)
        recording = _slab(name, data, count > 0, header, affine, slices, first)
        return replace(recording, sigma_y=_averaged(sigma_y, count))
    chosen = span(len(planes), first, slices, "the file")
    if affine is not None:
        affine[:, 3] += affine[:, 2] * chosen.start
    if header.trajectory != "cartesian":
        return replace(_along_trajectory(name, planes[chosen], header, affine), sigma_y=sigma_y)
    data, count = _on_grid(planes[chosen], header)
    recording = without_oversampling(name, data[..., 0], count[..., 0] > 0, header, affine)
    return replace(recording, sigma_y=_averaged(sigma_y, count))


def _whiten(lines: list[Line], noise: list[Line], header: Encoding) -> float:
    """Whiten readouts with those of a noise scan; returns the standard deviation of their noise, nan if unknown.

    The variance of the noise is proportional to the bandwidth, and the bandwidth to one over the dwell time.
    """
    noise = [line for line in noise if line.active_channels == lines[0].active_channels]
    if not noise:
        return float("nan")
    dwell, noise_dwell = lines[0].sample_time_us, noise[0].sample_time_us
    bandwidth = noise_dwell / dwell if dwell > 0 and noise_dwell > 0 else 1.0
    found = whitening(np.concatenate([_samples(line) for line in noise], axis=1), bandwidth / header.noise_bandwidth)
    if found is None:
        return float("nan")
    for line in lines:
        line.data[:] = found.matrix @ line.data
    return found.sigma


def _averaged(sigma_y: float, count: np.ndarray) -> float:
    """Root mean square of the noise, of values that are averages of `count` values; 0 where not measured."""
    return sigma_y * float(np.sqrt((1 / count[count > 0]).mean()))


def _in_place(planes: list[list[Line]], header: Encoding) -> tuple[list[list[Line]], np.ndarray | None]:
    """Slices sorted along `slice_dir`, and the affine from (line, sample, slice) of the encoded image to mm.

    A slice's position is the position of its pixel `n // 2`, the origin of the Fourier transform. The affine is None if
    the file gives no directions.
    """
    heads = [plane[0] for plane in planes]
    directions = np.array([[head.read_dir[:], head.phase_dir[:], head.slice_dir[:]] for head in heads], np.float64)
    positions = np.array([head.position[:] for head in heads], np.float64)
    if not directions.any():
        return planes, None
    if not np.allclose(directions @ directions[0].T, np.eye(3), atol=1e-2) or not np.isfinite(positions).all():
        raise InputError(
            "read_dir, phase_dir, slice_dir differ between slices or are not perpendicular; expected the same "
            "orthonormal ones in all"
        )
    order = np.argsort(positions @ directions[0, 2], kind="stable")
    planes, positions = [planes[i] for i in order], positions[order]
    read, phase, normal = directions[0]
    step = normal * header.spacing
    if len(planes) > 1 and np.ptp(positions, axis=0).any():
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
        expected = positions[0] + np.arange(len(planes))[:, None] * step
        if np.linalg.norm(positions - expected, axis=1).max() > UNEVEN * np.linalg.norm(step):
            along = ", ".join(f"{place:.4g}" for place in positions @ normal)
            raise InputError(f"slices at {along} mm along slice_dir; expected even spacing")
    x, y, z = header.matrix
    affine = np.eye(4)
    affine[:3, :3] = np.stack([phase * header.encoded[1] / y, read * header.encoded[0] / x, step], axis=1)
    affine[:3, 3] = positions[0] - affine[:3, :3] @ [y // 2, x // 2, z // 2]
    affine[:3] *= LPS_TO_RAS[:, None]
    return planes, affine


def _samples(line: Line) -> np.ndarray:
    """Values `(coils, samples)` without those marked as discarded."""
    return line.data[:, line.discard_pre : line.number_of_samples - line.discard_post]


def _on_grid(planes: Sequence[list[Line]], header: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """K-space `(slices, coils, readout, lines, partitions)`, and how often each value was measured, without coils."""
    x, y, z = header.matrix
    coils, held = planes[0][0].active_channels, sum(line.data.nbytes for plane in planes for line in plane)
    check_claim(len(planes) * coils * x * y * z * np.complex64().nbytes, held, "the header's matrix")
    data = np.zeros((len(planes), coils, x, y, z), np.complex64)
    count = np.zeros((len(planes), x, y, z), np.int32)
    for i, plane in enumerate(planes):
        for line in plane:
            samples, start = _samples(line), x // 2 - line.center_sample + line.discard_pre
            row = line.idx.kspace_encode_step_1 - header.centre[0] + y // 2
            partition = line.idx.kspace_encode_step_2 - header.centre[1] + z // 2
            stop = start + samples.shape[1]
            if not (0 <= start < stop <= x and 0 <= row < y and 0 <= partition < z):
                raise InputError(
                    f"line {line.idx.kspace_encode_step_1}, partition {line.idx.kspace_encode_step_2}, "
                    f"{line.number_of_samples} samples with sample {line.center_sample} in the centre; expected all "
                    f"inside the header's matrix of {x} x {y} x {z}"
                )
            data[i, :, start:stop, row, partition] += samples
            count[i, start:stop, row, partition] += 1
    return data / np.maximum(count, 1)[:, None], count


def _slab(
    name: str, data: np.ndarray, mask: np.ndarray, header: Encoding, affine: np.ndarray | None,
    slices: int | None, first: int | None,
) -> Recording:  # fmt: skip
    """Slices of a slab along a fully sampled axis of k-space: the partitions if possible, otherwise the readout."""
    x, y, z = header.matrix
    axis = 2 if (mask == mask[..., :1]).all() else 0
    if axis == 0 and (mask != mask[:, :1]).any():
        raise InputError(
            "some lines are not measured in all partitions, and some echoes are partial; expected each line to have "
            "all partitions or all samples"
        )
    before, after = header.beside(axis, header.matrix[axis])
    chosen = span(header.matrix[axis] - before - after, first, slices, "the file")
    chosen = slice(chosen.start + before, chosen.stop + before)
    planes_of = "c x y z -> x c y z" if axis == 0 else "c x y z -> z c x y"
    image = rearrange(ifft(data, (2 + axis,))[0], planes_of)[chosen]
    if affine is not None and axis == 0:
        affine = affine[:, [2, 0, 1, 3]]  # from (partition, line, sample)
    if affine is not None:
        affine[:, 3] += affine[:, 2] * chosen.start
    if axis == 2:
        return without_oversampling(name, image, mask[..., 0], header, affine)
    margin = *header.beside(1, y), *header.beside(2, z)
    if affine is not None:
        affine[:, 3] += affine[:, :2] @ [margin[2], margin[0]]
    return Recording(
        name=name, operator=CartesianMRI, units=UNITS, slice_spacing=header.encoded[0] / x, margin=margin, data=image,
        affine=affine, description={"mask": mask[:, 0], "field_of_view": header.encoded[1:]},
    )  # fmt: skip


def _along_trajectory(
    name: str, planes: Sequence[list[Line]], header: Encoding, affine: np.ndarray | None
) -> Recording:
    """Samples along a trajectory. Its positions are in cycles per pixel or per field of view: ISMRMRD allows both."""
    size, field = header.matrix[0], header.encoded[0]
    if header.matrix[1] != size or abs(header.encoded[1] - field) > 1e-3 * field:
        raise InputError(f"encoded matrix {header.matrix}, {header.encoded} mm; expected a square one")
    if any(line.trajectory_dimensions < 2 for plane in planes for line in plane):
        raise InputError(f"a {header.trajectory} scan without sample positions; add them (traj)")
    orders = [sorted(plane, key=lambda line: line.idx.kspace_encode_step_1) for plane in planes]
    positions = [
        np.concatenate([line.traj[line.discard_pre : line.number_of_samples - line.discard_post, :2] for line in plane])
        for plane in orders
    ]
    if any(each.shape != positions[0].shape or np.abs(each - positions[0]).max() > 1e-4 for each in positions):
        raise InputError("the trajectories of the slices differ; choose a single slice (data.first, data.slices)")
    trajectory = positions[0].astype(np.float64)
    if np.abs(trajectory).max() <= 0.5 * (1 + 1e-6):
        trajectory *= size  # from cycles per pixel
    top, bottom = header.beside(0, size)
    left, right = header.beside(1, size)
    if affine is not None:
        affine[:, 3] += affine[:, :2] @ [left, top]
    return Recording(
        name=name, operator=NonCartesianMRI, units=UNITS, slice_spacing=header.spacing, affine=affine,
        data=np.stack([np.concatenate([_samples(line) for line in plane], axis=1) for plane in orders]),
        margin=(top, bottom, left, right),
        description={"trajectory": trajectory / field, "pixel_size": field / size, "image_size": size},
    )  # fmt: skip
