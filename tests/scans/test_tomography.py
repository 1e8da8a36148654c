"""X-ray tomography: files with the documented layouts, of discs whose projections are known exactly."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ddip_pl.errors import InputError
from ddip_pl.physics import LinearOperator, ParallelBeamCT
from ddip_pl.scans.counts import Detector, axis_of_rotation, line_integrals
from ddip_pl.scans.files import read_scan

BINS, ROWS, VIEWS = 96, 4, 120
PHOTONS = 2e5
DISCS = [(4.0, -7.0, 26.0, 0.01), (-10.0, 12.0, 8.0, 0.02), (18.0, 3.0, 4.0, -0.006)]  # p_0, p_1, radius, 1/mm


def sinogram(
    angles: np.ndarray, centre: float, width: float = 1.0, discs: list[tuple[float, ...]] = DISCS
) -> np.ndarray:
    """Line integrals `(rows, views, bins)` of discs, which get weaker from row to row; lengths in bins."""
    s = np.arange(BINS) - centre
    total = np.zeros((len(angles), BINS))
    for p0, p1, radius, value in discs:
        distance = s - (p0 * np.cos(angles) + p1 * np.sin(angles))[:, None]
        total += 2 * value * width * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return np.stack([total * (1 - 0.2 * row) for row in range(ROWS)])


def counts(integrals: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a detector with an uneven beam and a dark current counts, `(views, rows, bins)`, with flats and darks."""
    random, shape = np.random.default_rng(seed), (len(integrals), integrals.shape[2])
    beam = PHOTONS * random.uniform(0.7, 1, shape)
    dark = random.uniform(50, 100, shape)
    views = random.poisson(beam * np.exp(-integrals.transpose(1, 0, 2)) + dark)
    flats, darks = random.poisson(beam + dark, (20, *shape)), random.poisson(dark, (20, *shape))
    return views.astype(np.uint32), flats.astype(np.uint32), darks.astype(np.uint32)


def truth(size: int, discs: list[tuple[float, ...]] = DISCS) -> np.ndarray:
    """The discs on a grid of bins, centred at the axis."""
    p = np.arange(size) - (size - 1) / 2
    return sum(value * (np.hypot(p[:, None] - p0, p[None] - p1) < radius) for p0, p1, radius, value in discs)  # type: ignore[return-value]


def dxchange(path: Path, angles: np.ndarray, images: tuple[np.ndarray, ...], width: float) -> Path:
    with h5py.File(path / "scan.h5", "w") as file:
        for name, values in zip(("data", "data_white", "data_dark"), images, strict=True):
            file[f"exchange/{name}"] = values
        file["exchange/theta"] = np.degrees(angles)
        file["exchange/theta"].attrs["units"] = "degrees"
        for axis in "xy":
            file[f"measurement/instrument/detector/pixel_size_{axis}"] = width * 1000
            file[f"measurement/instrument/detector/pixel_size_{axis}"].attrs["units"] = "um"
    return path / "scan.h5"


def nxtomo(path: Path, angles: np.ndarray, images: tuple[np.ndarray, ...], width: float) -> Path:
    """Flats and darks first, as most instruments take them, and an invalid image at the end."""
    views, flats, darks = images
    with h5py.File(path / "scan.nxs", "w") as file:
        entry = file.create_group("entry1/tomo_entry")
        entry["definition"] = "NXtomo"
        detector = entry.create_group("instrument/detector")
        detector["data"] = np.concatenate([darks, flats, views, views[:1] * 0])
        detector["image_key"] = np.repeat([2, 1, 0, 3], [len(darks), len(flats), len(views), 1])
        for axis in "xy":
            detector[f"{axis}_pixel_size"] = width / 1000
            detector[f"{axis}_pixel_size"].attrs["units"] = "m"
        before = np.zeros(len(darks) + len(flats))
        entry["sample/rotation_angle"] = np.degrees(np.concatenate([before, angles, [0]]))
        entry["data/data"] = h5py.SoftLink("/entry1/tomo_entry/instrument/detector/data")
    return path / "scan.nxs"


def tiff(path: Path, angles: np.ndarray, images: tuple[np.ndarray, ...], width: float) -> Path:
    folder = path / "scan"
    folder.mkdir()
    for prefix, stack in zip(("view", "flat", "dark"), images, strict=True):
        for number, image in enumerate(stack):
            Image.fromarray(image.astype(np.float32)).save(folder / f"{prefix}_{number:04d}.tif")
    np.savetxt(folder / "angles.txt", np.degrees(angles))
    return folder


FORMATS = {"dxchange": dxchange, "nxtomo": nxtomo, "tiff": tiff}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("given", [None, 51.3], ids=["estimated", "given"])
def test_discs_come_back_in_their_place_and_size(
    make: Callable[..., Path], given: float | None, tmp_path: Path
) -> None:
    """The axis is 3.8 bins beside the middle of the detector."""
    angles, centre, width = np.linspace(0, np.pi, VIEWS, endpoint=False), 51.3, 0.5
    width = 1.0 if make is tiff else width
    path = make(tmp_path, angles, counts(sinogram(angles, centre, width)), width)
    measurement, frame = read_scan(path, detector=Detector(given))
    assert measurement.operator.shape == (ROWS, BINS, BINS)
    assert np.allclose(frame.spacing, width)
    assert frame.units == "1/mm"
    found = measurement.operator.pseudo_inverse(measurement.y)[:, 0].numpy() * np.ptp(frame.window)
    expected = np.stack([truth(BINS) * (1 - 0.2 * row) for row in range(ROWS)])
    inside = np.hypot(*np.indices((BINS, BINS)) - (BINS - 1) / 2) < 40
    error = (found - expected)[:, inside]
    assert np.sqrt((error**2).mean()) < 0.08 * expected.max()
    large = np.hypot(*(np.indices((BINS, BINS)) - (BINS - 1) / 2 - np.array([4, -7])[:, None, None])) < 15
    empty = expected[0] == 0.01  # in the large disc, without the others
    assert np.allclose([row[large & empty].mean() for row in found], expected[:, large & empty].mean(1), rtol=0.02)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_some_rows(make: Callable[..., Path], tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    path = make(tmp_path, angles, counts(sinogram(angles, 47.5)), 1.0)
    whole, part = read_scan(path, detector=Detector(47.5)), read_scan(path, 2, 1, detector=Detector(47.5))
    unit = np.ptp(whole.frame.window) / np.ptp(part.frame.window)
    parts, wholes = (each.measurement.y / each.measurement.operator.weight for each in (part, whole))
    assert np.allclose(parts, wholes[1:3] * unit, atol=1e-5)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("given", [None, 51.3], ids=["estimated", "given"])
def test_averaged_bins_and_every_third_view(make: Callable[..., Path], given: float | None, tmp_path: Path) -> None:
    """Still the discs, on a coarser grid; a row that is left over is dropped."""
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    path = make(tmp_path, angles, counts(sinogram(angles, 51.3)), 1.0)
    measurement, frame = read_scan(path, detector=Detector(given, binning=3, every=3))
    assert measurement.operator.shape == (1, BINS // 3, BINS // 3)
    assert np.allclose(measurement.operator.operator.angles, angles[::3])
    assert np.allclose(frame.spacing, 3)
    found = measurement.operator.pseudo_inverse(measurement.y)[0, 0].numpy() * np.ptp(frame.window)
    squares = truth(BINS).reshape(BINS // 3, 3, BINS // 3, 3).mean((1, 3)) * 0.8  # of the mean of three rows
    inside = np.hypot(*np.indices(squares.shape) - (BINS // 3 - 1) / 2) < 13
    assert np.sqrt(((found - squares)[inside] ** 2).mean()) < 0.08 * squares.max()


def test_slices_are_counted_after_averaging(tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    path = dxchange(tmp_path, angles, counts(sinogram(angles, 47.5)), 1.0)
    whole, second = (read_scan(path, *which, detector=Detector(47.5, 2)) for which in ((), (1, 1)))
    assert (len(whole.measurement), len(second.measurement)) == (2, 1)
    unit = np.ptp(whole.frame.window) / np.ptp(second.frame.window)
    y, expected = (each.measurement.y / each.measurement.operator.weight for each in (second, whole))
    assert np.allclose(y, expected[1:] * unit, atol=1e-5)
    with pytest.raises(InputError, match=r"data.slices is 3; the detector has 2 rows of 2"):
        read_scan(path, 3, detector=Detector(binning=2))
    with pytest.raises(InputError, match="the detector has 0 rows of 97"):
        read_scan(path, detector=Detector(binning=97))


def test_a_file_of_the_nxtomo_package(tmp_path: Path) -> None:
    application = pytest.importorskip("nxtomo.application.nxtomo")
    units = pytest.importorskip("pint").get_application_registry()
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    views, flats, darks = counts(sinogram(angles, 51.3))
    scan = application.NXtomo()
    detector, before = scan.instrument.detector, len(darks) + len(flats)
    detector.data = np.concatenate([darks, flats, views])
    detector.image_key_control = np.repeat([2, 1, 0], [len(darks), len(flats), len(views)])
    detector.x_pixel_size, detector.y_pixel_size = 2e-6 * units.meter, 3e-6 * units.meter
    scan.sample.rotation_angle = np.concatenate([np.zeros(before), np.degrees(angles)]) * units.degree
    scan.save(str(tmp_path / "package.nx"), data_path="/entry0000")
    theirs, ours = read_scan(tmp_path / "package.nx"), read_scan(nxtomo(tmp_path, angles, (views, flats, darks), 2e-3))
    assert torch.equal(theirs.measurement.y, ours.measurement.y)
    assert np.allclose(theirs.frame.spacing, (2e-3, 2e-3, 3e-3))


@pytest.mark.parametrize("centre", [20.2, 47.5, 60.75])
@pytest.mark.parametrize(
    ("start", "stop", "views"), [(0, 180, 120), (0, 360, 200), (-90, 90, 90), (10, 150, 90), (0, 110, 60)]
)
def test_axis_of_rotation(centre: float, start: float, stop: float, views: int) -> None:
    """With opposite views within 1.5 steps of half a turn, and without."""
    angles = np.radians(np.linspace(start, stop, views, endpoint=False))
    discs = [(p0 / 4, p1 / 4, radius / 2, value) for p0, p1, radius, value in DISCS]
    noisy = sinogram(angles, centre, discs=discs) + np.random.default_rng(0).normal(0, 1e-3, (ROWS, views, BINS))
    assert axis_of_rotation(noisy, angles) == pytest.approx(centre, abs=0.25)


def test_axis_of_an_object_larger_than_the_detector() -> None:
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    discs = [(20.0, -15.0, 60.0, 0.01), *DISCS]
    assert axis_of_rotation(sinogram(angles, 44.0, discs=discs), angles) == pytest.approx(44.0, abs=0.5)


def test_counts_that_have_no_logarithm_and_dead_bins() -> None:
    angles = np.linspace(0, np.pi, 40, endpoint=False)
    exact = sinogram(angles, 47.5)
    views, flat, dark = (
        np.exp(-exact.transpose(1, 0, 2)) * 1000 + 10,
        np.full((ROWS, BINS), 1010.0),
        np.full((ROWS, BINS), 10.0),
    )
    assert np.allclose(line_integrals(views, flat, dark).transpose(1, 0, 2), exact, atol=1e-5)
    views[3, 1, 40:43] = 10, 5, 0  # at and below the dark field
    flat[2, 50] = 10  # dead
    views[:, 2, 50] = 10
    found = line_integrals(views, flat, dark)
    assert np.isfinite(found).all()
    assert np.allclose(found[3, 1, 40:43], found[3].max())
    assert np.allclose(found[:, 2, 50], (exact[2, :, 49] + exact[2, :, 51]) / 2, atol=1e-5)


def test_rays_are_weighed_by_their_photons(tmp_path: Path) -> None:
    """Few photons pass the dense disc; with weights, what passed beside it counts for more."""
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    discs = [(0.0, 0.0, 36.0, 0.02), (0.0, -20.0, 6.0, 0.25), (0.0, 20.0, 6.0, 0.25)]
    views, flat, dark = (images / 100 for images in counts(sinogram(angles, 47.5, discs=discs)))
    noisy = np.random.default_rng(1).poisson(views), np.round(flat), np.round(dark)
    measurement, frame = read_scan(dxchange(tmp_path, angles, noisy, 1.0), 2, 0, detector=Detector(47.5))
    weights, expected = (
        measurement.operator.weight,
        np.stack([truth(BINS, discs) * (1 - 0.2 * row) for row in range(2)]),
    )
    plain = ParallelBeamCT((2, BINS, BINS), angles, detectors=BINS)

    def error(operator: LinearOperator, y: torch.Tensor, damping: float) -> float:
        x = operator.solve(operator.adjoint(y), 60, damping=damping)[:, 0].numpy() * scale
        return float(np.sqrt(((x - expected) ** 2)[expected < 0.05].mean()))  # without the dense discs' edges

    scale = np.ptp(frame.window)
    best = min(error(measurement.operator, measurement.y, 10.0**k) for k in (-2.5, -2, -1.5))
    unweighted = measurement.y / weights * (1 / plain.scale) * measurement.operator.operator.scale
    assert best < 0.6 * min(error(plain, unweighted, 10.0**k) for k in (-2.5, -2, -1.5))


def test_noise_of_whitened_counts_is_the_same_everywhere(tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    exact = sinogram(angles, 47.5, discs=[(0.0, 0.0, 36.0, 0.06)])
    scan = read_scan(dxchange(tmp_path, angles, counts(exact), 1.0), detector=Detector(47.5)).measurement
    noise = scan.y / scan.operator.weight
    clean = torch.from_numpy(exact)[:, None].to(noise)
    factor = (noise * clean).sum() / clean.square().sum()
    residual = (noise - factor * clean) * scan.operator.weight
    centre, edge = residual[0, ..., 40:56].std(), residual[0, ..., :8].std()
    assert centre == pytest.approx(float(edge), rel=0.15)
    assert (noise - factor * clean)[0, ..., 40:56].std() > 3 * (noise - factor * clean)[0, ..., :8].std()
    assert scan.operator.noise_level(scan.y) == pytest.approx(float(edge), rel=0.15)
    assert scan.operator.norm == pytest.approx(1, rel=1e-2)
    assert scan.operator.check().adjointness < 1e-4


def broken_theta(file: h5py.File) -> None:
    del file["exchange/theta"]
    file["exchange/theta"] = np.zeros(3)


def without_beam(file: h5py.File) -> None:
    file["exchange/data_white"][...] = file["exchange/data_dark"][...]


def other_flat(file: h5py.File) -> None:
    del file["exchange/data_white"]
    file["exchange/data_white"] = np.ones((2, 3, 5))


BAD: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "angles": (broken_theta, r"120 projections with angles of shape \(3,\)"),
    "no beam": (without_beam, "a row of the flat field is not brighter than the dark field"),
    "flat field": (other_flat, r"data_white has shape \(2, 3, 5\); expected \(images, 4, 96\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_files(change: Callable[[h5py.File], None], message: str, tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    path = dxchange(tmp_path, angles, counts(sinogram(angles, 47.5)), 1.0)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        read_scan(path)


def test_axis_beside_the_detector(tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    path = dxchange(tmp_path, angles, counts(sinogram(angles, 47.5)), 1.0)
    with pytest.raises(InputError, match=r"data.centre is 96; expected a bin of the detector, 0 .. 95"):
        read_scan(path, detector=Detector(96))


def test_axis_of_a_file_that_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.ones((1, 8, 8), np.complex64))
    with pytest.raises(InputError, match=r"data.centre is 3, but only counts of an X-ray detector need it"):
        read_scan(tmp_path / "scan.npy", detector=Detector(3))
    with pytest.raises(InputError, match=r"data.every is 4, but only counts of an X-ray detector need it"):
        read_scan(tmp_path / "scan.npy", detector=Detector(every=4))


def test_bad_folders(tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi, 6, endpoint=False)
    folder = tiff(tmp_path, angles, counts(sinogram(angles, 47.5)), 1.0)
    (folder / "angles.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match=r"6 projections, but angles.txt has 2 angles"):
        read_scan(folder)
    (folder / "view_0001.tif").write_bytes(b"II*\0nothing")
    np.savetxt(folder / "angles.txt", np.degrees(angles))
    with pytest.raises(InputError, match=r"view_0001.tif: damaged, or not a TIFF file"):
        read_scan(folder)
    (folder / "angles.txt").unlink()
    with pytest.raises(InputError, match=r"angles.txt is missing or damaged"):
        read_scan(folder)


def test_an_inclined_axis_of_rotation(tmp_path: Path) -> None:
    """Balls, whose projections are known on any detector, come back where they are; without `tilt` they do not."""
    bins, rows, degrees = 64, 24, 8.0
    angles = np.linspace(0, np.pi, VIEWS, endpoint=False)
    v, u = np.indices((rows, bins)) - np.array([rows - 1, bins - 1])[:, None, None] / 2
    across = u * np.cos(np.radians(degrees)) - v * np.sin(np.radians(degrees))
    along = v * np.cos(np.radians(degrees)) + u * np.sin(np.radians(degrees))
    shadows = np.zeros((VIEWS, rows, bins))
    balls = (18.0, 4.0, 3.0, 7.0), (-12.0, 15.0, -4.0, 5.0)  # row and column of the image, slice, radius
    for row, column, place, radius in balls:
        centre = row * np.cos(angles) + column * np.sin(angles)
        half = radius**2 - (across - centre[:, None, None]) ** 2 - (along - place) ** 2
        shadows += 0.02 * 2 * np.sqrt(np.maximum(half, 0))
    path = tiff(tmp_path, angles, counts(shadows.transpose(1, 0, 2)), 1.0)
    height, *places = np.indices((6, bins, bins)) - np.array([2.5, (bins - 1) / 2, (bins - 1) / 2])[:, None, None, None]
    truth = sum(
        0.02 * ((places[0] - row) ** 2 + (places[1] - column) ** 2 + (height - place) ** 2 < radius**2)
        for row, column, place, radius in balls
    )

    def error(detector: Detector) -> float:
        measurement, frame = read_scan(path, 6, detector=detector)
        found = measurement.operator.pseudo_inverse(measurement.y)[:, 0].numpy() * np.ptp(frame.window)
        return float(np.sqrt(((found - truth) ** 2).sum() / (truth**2).sum()))

    middle = (bins - 1) / 2
    found = [error(Detector(middle, tilt=tilt)) for tilt in (degrees, 0, -degrees)]
    assert found[0] < 0.5 * found[1] < 0.5 * found[2]
    assert error(Detector(tilt=degrees)) < 0.5 * found[1]
