"""MATLAB files (`.mat`) with projections, `angles` and the geometry `geo` of the TIGRE toolbox."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddip_pl.errors import InputError
from ddip_pl.physics.foreign_geometry import from_tigre
from ddip_pl.scans.recording import Recording
from ddip_pl.volumes.slices import span

SUFFIX = ".mat"
REVERSED = ("nVoxel", "dVoxel", "nDetector", "dDetector", "offOrigin", "offDetector")  # (x, y, z) and (u, v) in MATLAB


def read_tigre(path: Path, slices: int | None, first: int | None) -> Recording:
    """Read the projections `(v, u, views)` of a cone beam or a parallel beam, the only array of that size in the file.

    Raises:
        InputError: the file was saved with `-v7.3`, or an entry is missing or inconsistent.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError as error:
        raise InputError("a MATLAB file of version 7.3; save it with '-v7'") from error
    variables = {name: value for name, value in content.items() if not name.startswith("__")}
    if not {"geo", "angles"} <= variables.keys():
        raise InputError(f"no variables geo and angles, as for TIGRE; the file has {', '.join(variables) or 'none'}")
    geometry = in_python_order(vars(variables.pop("geo")))
    angles = np.atleast_1d(np.asarray(variables.pop("angles"), np.float64)).T
    shape = *np.ravel(geometry.nDetector).astype(int).tolist(), len(angles)
    found = [value for value in variables.values() if np.size(value) == np.prod(shape)]
    if len(found) != 1:
        raise InputError(f"{len(found)} arrays of {shape[0]} x {shape[1]} bins and {shape[2]} views; expected one")
    data = np.moveaxis(np.reshape(found[0], shape), 2, 0)
    operator = from_tigre(geometry, angles)
    height, pixel, _ = np.ravel(geometry.dVoxel).tolist()
    if operator.axes[0] != "slices":
        if (slices, first) != (None, None):
            raise InputError("the slices were measured together; leave out data.slices and data.first")
        data = data[None]
    else:
        data = data.swapaxes(0, 1)[span(shape[0], first, slices, "the file")]
    return Recording(
        name=path.stem, operator=type(operator), data=data, description=operator.describe((pixel, pixel)),
        units="1/mm", slice_spacing=height,
    )  # fmt: skip


def in_python_order(fields: Mapping[str, Any]) -> SimpleNamespace:
    """TIGRE's geometry with the numbers of each view in a row, in the order of its Python version."""
    given = {name: value for name, value in fields.items() if not name.startswith("_")}
    arrays = {name: np.asarray(value) for name, value in given.items() if not isinstance(value, str)}
    return SimpleNamespace(
        **given | {name: (value[::-1] if name in REVERSED else value).T for name, value in arrays.items() if value.ndim}
    )
