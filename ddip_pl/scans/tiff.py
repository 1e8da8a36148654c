"""Folders of TIFF projections, as most laboratory scanners export them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddip_pl.errors import InputError, reason
from ddip_pl.scans.counts import Detector, tomography
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.claims import check_claim

SUFFIXES = (".tif", ".tiff")
ANGLES = "angles.txt"
FLAT, DARK = "flat", "dark"  # how the names of other images begin


def tiff_files(folder: Path) -> list[Path]:
    """The TIFF files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def read_tiff(folder: Path, slices: int | None, first: int | None, detector: Detector) -> Recording:
    """Read one TIFF file per view, in the order of their names, and `angles.txt` with their angles in degrees.

    Files whose names begin with `flat` or `dark` are the flat and the dark field. Without a flat field, the images are
    transmissions. Pixels are 1 mm wide.

    Args:
        folder: of the files.
        slices: number of detector rows, by default all.
        first: index of the first row; by default the rows are the central ones.
        detector: how they are read.

    Raises:
        InputError: a file is missing, damaged or of another size.
    """
    named = {kind: [path for path in tiff_files(folder) if path.name.lower().startswith(kind)] for kind in (FLAT, DARK)}
    views = [path for path in tiff_files(folder) if path not in named[FLAT] + named[DARK]]
    if not views:
        raise InputError("no projections: the TIFF files are all flat or dark fields")
    try:
        angles = np.loadtxt(folder / ANGLES, ndmin=1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{ANGLES} is missing or damaged ({reason(error)}); give one angle in degrees per view"
        ) from error
    if angles.shape != (len(views),):
        raise InputError(f"{len(views)} projections, but {ANGLES} has {angles.size} angles; give one per view")
    shape = read_image(views[0]).shape
    rows, kept = detector.rows(shape[0], first, slices)

    def images(paths: list[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            image = read_image(path)
            if image.shape != shape:
                raise InputError(f"{path.name} has {image.shape} pixels, {views[0].name} has {shape}")
            yield image[rows]

    height = rows.stop - rows.start
    flat, dark = (
        detector.binned(np.mean([*images(named[kind])], 0) if named[kind] else np.full((height, shape[1]), default))
        for kind, default in ((FLAT, 1.0), (DARK, 0.0))
    )
    counts, angles = detector.projections(images(views[:: detector.every])), np.radians(angles[:: detector.every])
    return tomography(folder.name, counts, flat, dark, angles, detector, kept, None, None)


def read_image(path: Path) -> np.ndarray:
    """The first image in a TIFF file, `(rows, bins)`, float32.

    Raises:
        InputError: it is damaged, or has colours.
    """
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            check_claim(4 * image.width * image.height, path.stat().st_size, path.name)
            values = np.asarray(image, np.float32)
    except InputError:
        raise
    except Exception as error:  # on a damaged file the reader may raise anything
        raise InputError(f"{path.name}: damaged, or not a TIFF file ({reason(error)})") from error
    if values.ndim != 2:
        raise InputError(f"{path.name} has {values.ndim} axes; expected a grey image")
    return values
