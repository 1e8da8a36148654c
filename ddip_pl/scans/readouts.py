"""The readouts of an MRI scan, as ISMRMRD describes them (Inati et al. 2017), and the image that they measure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from einops import rearrange

from ddip_pl.errors import InputError
from ddip_pl.physics.fft import ifft
from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.physics.non_cartesian import NonCartesianMRI
from ddip_pl.scans.counters import ANY, COUNTERS, Counters
from ddip_pl.scans.header import Encoding
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
CALIBRATION = ("PARALLEL_CALIBRATION", "PARALLEL_CALIBRATION_AND_IMAGING")
FLAGS = (*NO_IMAGE, *CALIBRATION, "REVERSE")
LPS_TO_RAS = np.array([-1, -1, 1])
UNEVEN = 0.02  # largest deviation of a slice from even spacing, as a fraction of the spacing


class Readouts:
    """The readouts of a scan, of which only the headers need to be in memory.

    Args:
        heads: their headers, of type `ismrmrd.hdf5.acquisition_header_dtype`, `(readouts,)`.
        lines: the readouts; a slice of it is a list of `Line`.
        header: how k-space was encoded.
    """

    def __init__(self, heads: np.ndarray, lines: Any, header: Encoding):
        import ismrmrd

        self.heads, self.lines, self.header, self.counters = heads, lines, header, heads["idx"]
        self.bits = {flag: np.uint64(1 << (getattr(ismrmrd, f"ACQ_IS_{flag}") - 1)) for flag in FLAGS}

    @property
    def image(self) -> np.ndarray:
        """Which readouts belong to an image, `(readouts,)`.

        Raises:
            InputError: none do.
        """
        found = ~self.flagged(*NO_IMAGE, *(() if self.header.embedded else ("PARALLEL_CALIBRATION",)))
        if not found.any():
            raise InputError("no image readouts; expected more than noise and calibration")
        return found

    def flagged(self, *flags: str) -> np.ndarray:
        """Which readouts have one of these flags, `(readouts,)`."""
        return (self.heads["flags"] & sum((self.bits[flag] for flag in flags), np.uint64(0))) != 0

    def of(self, volume: Counters) -> np.ndarray:
        """Which readouts belong to a volume, `(readouts,)`."""
        given = [self.counters[name] == value for name, value in vars(volume).items() if value is not None]
        return np.logical_and.reduce([np.ones(len(self.heads), bool), *given])

    def volumes(self, wanted: Counters) -> list[Counters]:
        """The volumes of the scan that have the wanted counters.

        Raises:
            InputError: there are none.
        """
        names, image = sorted(COUNTERS), self.counters[self.image]
        found = np.unique(np.stack([image[name] for name in names], axis=1), axis=0)
        return wanted.of([Counters(**dict(zip(names, values, strict=True))) for values in found.tolist()])

    def positions(self, chosen: np.ndarray) -> set[tuple[int, ...]]:
        """The slices, lines and partitions that these readouts measure."""
        names = "slice", "kspace_encode_step_1", "kspace_encode_step_2"
        return set(zip(*(self.counters[name][chosen].tolist() for name in names), strict=True))

    def read(self, chosen: np.ndarray) -> list[Line]:
        """These readouts."""
        indices = np.flatnonzero(chosen)
        if not len(indices):
            return []
        lines = self.lines[int(indices[0]) : int(indices[-1]) + 1]
        return [lines[i] for i in indices - indices[0]]


def read_image(
    scan: str, readouts: Readouts, slices: int | None, first: int | None, wanted: Counters = ANY
) -> Recording:
    """Read one image: 2D slices, Cartesian or along a trajectory, or a Cartesian 3D slab.

    Noise readouts give the noise level and whiten the coils, calibration readouts give the coil maps. Readouts of other
    kinds are skipped. Values measured several times are averaged. `center_sample` gives the centre of each echo; slices
    are sorted along `slice_dir`.

    Args:
        scan: its name.
        readouts: of the scan.
        slices: see `read_scan`.
        first: see `read_scan`.
        wanted: the volume to read.

    Raises:
        InputError: the scan has no such image, or several; or its content is not supported.
    """
    header, image = readouts.header, readouts.image
    [volume, *others] = readouts.volumes(wanted)
    if others:
        raise InputError(f"{len(others) + 1} volumes ({volume}, ...); choose one (data.volume)")
    own = image & readouts.of(volume)
    if (own & readouts.flagged("REVERSE")).any():
        raise InputError("readouts in both directions (EPI), which need a phase correction; not supported")
    coils = readouts.heads["active_channels"]
    if len(set(coils[own])) > 1:
        raise InputError(f"readouts of {sorted(set(coils[own].tolist()))} coils; expected the same coils in all")
    same = coils == coils[own][0]
    lines = readouts.read(own)
    calibration = readouts.read(
        same & _calibration(readouts, own, image & readouts.of(replace(volume, repetition=None)))
    )
    noise = readouts.read(same & readouts.flagged("NOISE_MEASUREMENT"))
    sigma_y = _whiten(lines, calibration, noise, header)

    name = volume.name(scan)
    planes = _by_slice(lines, sorted({line.idx.slice for line in lines}))
    planes, affine = _in_place(planes, header)
    if header.matrix[2] > 1 and (len(planes) > 1 or header.trajectory != "cartesian"):
        raise InputError(
            f"{len(planes)} slabs of {header.matrix[2]} partitions, {header.trajectory}; expected 2D slices, "
            f"or one Cartesian slab"
        )
    if header.trajectory != "cartesian" or header.matrix[2] == 1:
        chosen = span(len(planes), first, slices, "the file")
        planes = planes[chosen]
        if affine is not None:
            affine[:, 3] += affine[:, 2] * chosen.start
    if header.trajectory != "cartesian":
        return replace(_along_trajectory(name, planes, header, affine), sigma_y=sigma_y)
    data, count = _on_grid(planes, header)
    reference = _by_slice(calibration, [plane[0].idx.slice for plane in planes])
    centre = _on_grid(reference, header)[0] if all(reference) else None
    if header.matrix[2] > 1:
        recording = _slab(name, data, count > 0, centre, header, affine, slices, first)
    else:
        centre = None if centre is None else centre[..., 0]
        recording = without_oversampling(name, data[..., 0], count[..., 0] > 0, header, affine, centre)
    return replace(recording, sigma_y=_averaged(sigma_y, count))


def _calibration(readouts: Readouts, own: np.ndarray, repetitions: np.ndarray) -> np.ndarray:
    """Which readouts give the coil maps, `(readouts,)`; none if the image itself does.

    They are those flagged as calibration, of any volume. Without them, and if other repetitions measure other lines,
    they are all repetitions: their average is complete (TSENSE, Kellman et al. 2001).

    Args:
        readouts: of the file.
        own: readouts of the volume.
        repetitions: the same of all repetitions.
    """
    flagged = readouts.flagged(*CALIBRATION)
    if flagged.any():
        return flagged
    return repetitions & (readouts.positions(own) != readouts.positions(repetitions))


def _by_slice(lines: list[Line], numbers: Sequence[int]) -> list[list[Line]]:
    """The readouts of each slice."""
    return [[line for line in lines if line.idx.slice == number] for number in numbers]


def _whiten(lines: list[Line], calibration: list[Line], noise: list[Line], header: Encoding) -> float:
    """Whiten readouts in place with a noise scan. Returns the standard deviation of their noise, nan if it is unknown.

    The variance of the noise is proportional to the bandwidth, and the bandwidth to one over the dwell time.
    """
    if not noise:
        return float("nan")
    dwell, noise_dwell = lines[0].sample_time_us, noise[0].sample_time_us
    bandwidth = noise_dwell / dwell if dwell > 0 and noise_dwell > 0 else 1.0
    found = whitening(np.concatenate([_samples(line) for line in noise], axis=1), bandwidth / header.noise_bandwidth)
    if found is None:
        return float("nan")
    for line in (*lines, *calibration):
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
    name: str, data: np.ndarray, mask: np.ndarray, centre: np.ndarray | None, header: Encoding,
    affine: np.ndarray | None, slices: int | None, first: int | None,
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

    def sliced(values: np.ndarray) -> np.ndarray:
        return rearrange(ifft(values, (2 + axis,))[0], planes_of)[chosen]

    image, centre = sliced(data), None if centre is None else sliced(centre)
    if affine is not None and axis == 0:
        affine = affine[:, [2, 0, 1, 3]]  # from (partition, line, sample)
    if affine is not None:
        affine[:, 3] += affine[:, 2] * chosen.start
    if axis == 2:
        return without_oversampling(name, image, mask[..., 0], header, affine, centre)
    margin = *header.beside(1, y), *header.beside(2, z)
    if affine is not None:
        affine[:, 3] += affine[:, :2] @ [margin[2], margin[0]]
    return Recording(
        name=name, operator=CartesianMRI, units=UNITS, slice_spacing=header.encoded[0] / x, margin=margin, data=image,
        affine=affine, calibration=centre, description={"mask": mask[:, 0], "field_of_view": header.encoded[1:]},
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
