"""K-space as a NumPy array."""

from pathlib import Path

import numpy as np

from ddip_pl.physics.mri import CartesianMRI
from ddip_pl.scans.oversampling import UNITS
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.files import load_array
from ddip_pl.volumes.slices import span


def read_array(path: Path, slices: int | None, first: int | None) -> Recording:
    """Read `(coils, ky, kx)` of one slice or `(slices, coils, ky, kx)`, 0 where not measured. Pixels are 1 mm wide.

    Raises:
        InputError: the file cannot be read, or has too few slices.
    """
    data = load_array(path)
    data = data[None] if data.ndim == 3 else data
    chosen = span(len(data), first, slices, "the file") if data.ndim else slice(None)
    description = {"field_of_view": data.shape[-2:]}
    return Recording(
        name=path.stem, operator=CartesianMRI, data=np.array(data[chosen]), description=description, units=UNITS
    )
