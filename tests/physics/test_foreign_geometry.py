"""Operators from the geometries of ASTRA and TIGRE project along these programs' rays."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddip_pl.errors import InputError
from ddip_pl.physics import ConeBeamCT, FanBeamCT, ParallelBeamCT, from_astra, from_tigre
from ddip_pl.physics.cone_rays import CircularRays, FreeRays

TURNS = np.linspace(0, 2 * np.pi, 13, endpoint=False) + 0.1
TILT = np.array([[1, 0, 0], [0, 1, 1], [0, -1, 1]]) * [[1], [0.5**0.5], [0.5**0.5]]  # turns (0, -1, 1) / sqrt(2) to z


def image(size: int, slices: int = 1) -> torch.Tensor:
    return torch.rand(slices, 1, size, size, generator=torch.Generator().manual_seed(0))


def blob(size: int) -> torch.Tensor:
    """Smooth and beside the middle: even where two programs discretise rays differently they agree on it."""
    places = torch.arange(size) / size
    return torch.exp(-60 * ((places[:, None] - 0.4) ** 2 + (places - 0.65) ** 2))[None, None]


# --- ASTRA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("kind", ["parallel", "fanflat"])
def test_astra_projects_the_same_image_alike(kind: str, vectors: bool) -> None:
    """Pixels of 0.5, an image beside the axis of rotation."""
    astra = pytest.importorskip("astra")
    distances = [30.0, 20.0] if kind == "fanflat" else []
    rays = astra.create_proj_geom(kind, 0.7, 40, TURNS, *distances)
    if vectors:
        rays = astra.geom_2vec(rays)
        rays["Vectors"][:, 2:4] += np.random.default_rng(0).normal(size=(13, 2))  # any path of the detector
    volume = astra.create_vol_geom(20, 20, -4.0, 6.0, -7.0, 3.0)
    handle = astra.create_projector("linear" if kind == "parallel" else "line_fanflat", rays, volume)
    _, expected = astra.create_sino(image(20)[0, 0].numpy(), handle)
    operator = from_astra(rays, volume, slices=2)
    assert isinstance(operator, FanBeamCT if distances else ParallelBeamCT)
    found = operator(image(20).expand(2, -1, -1, -1)) * operator.unit((0.5, 0.5))
    np.testing.assert_allclose(found[1, 0], expected, atol=1e-4 * expected.max())


def test_astra_parallel_beam_in_space_is_a_stack_of_planes() -> None:
    astra = pytest.importorskip("astra")
    rays = astra.create_proj_geom("parallel3d", 0.7, 2.0, 3, 40, TURNS)
    space = from_astra(rays, astra.create_vol_geom(20, 20, 3, -5, 5, -5, 5, -3, 3))
    rays = astra.create_proj_geom("parallel", 0.7, 40, TURNS)
    plane = from_astra(rays, astra.create_vol_geom(20, 20, -5, 5, -5, 5), slices=3)
    x = image(20, 3)
    assert isinstance(space, ParallelBeamCT)
    torch.testing.assert_close(space(x.flip(2)), plane(x))  # in space, rows of the image run along y


def test_astra_cone_beam_in_the_plane_of_the_orbit_is_a_fan_beam() -> None:
    """The two discretise rays differently; the shadow's place and sum are the same."""
    astra = pytest.importorskip("astra")
    rays = astra.create_proj_geom("cone", 1.2, 1.2, 1, 120, TURNS, 80, 40)
    cone = from_astra(rays, astra.create_vol_geom(48, 48, 1))
    rays = astra.create_proj_geom("fanflat", 1.2, 120, TURNS, 80, 40)
    fan = from_astra(rays, astra.create_vol_geom(48, 48))
    assert isinstance(cone, ConeBeamCT)
    bins, x = torch.arange(120), blob(48)
    expected, found = fan(x)[0, 0] * fan.unit((1, 1)), cone(x.flip(2))[0, :, 0] * cone.unit((1, 1))
    torch.testing.assert_close(found.sum(1), expected.sum(1), rtol=0.01, atol=0)
    places = [(shadow * bins).sum(1) / shadow.sum(1) for shadow in (found, expected)]
    torch.testing.assert_close(*places, rtol=0, atol=0.05)


def test_astra_geometries_that_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    astra = pytest.importorskip("astra")
    rays, volume = astra.create_proj_geom("parallel", 1.0, 30, TURNS), astra.create_vol_geom(20, 20)
    with pytest.raises(InputError, match="of type 'sparse_matrix'; expected parallel, fanflat"):
        from_astra({"type": "sparse_matrix"}, volume)
    with pytest.raises(InputError, match="slices of 20 x 30 pixels of 1 x 1; expected square"):
        from_astra(rays, astra.create_vol_geom(20, 30))
    with pytest.raises(InputError, match="a parallel beam with 4 rows and 3 slices"):
        from_astra(astra.create_proj_geom("parallel3d", 1.0, 1.0, 4, 30, TURNS), astra.create_vol_geom(20, 20, 3))
    along = np.tile([0.0, -1, 0, 0, 1, 0], (3, 1))
    along[2, 4:] = 0, 1
    with pytest.raises(InputError, match="rays along the detector in view 2"):
        from_astra({"type": "parallel_vec", "DetectorCount": 30, "Vectors": along}, volume)
    monkeypatch.setitem(sys.modules, "astra.functions", None)
    with pytest.raises(InputError, match="pip install astra-toolbox"):
        from_astra(rays, volume)


# --- vectors in the plane ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ParallelBeamCT, FanBeamCT])
def test_vectors_give_the_operator_of_the_angles(cls: Any) -> None:
    plain = cls((2, 16, 16), angles=11, detectors=30, spacing=1.1)
    operator = cls((2, 16, 16), vectors=3 * plain.vectors, detectors=30, pixel=3.0)
    x = image(16, 2)
    torch.testing.assert_close(operator(x), plain(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), plain.pseudo_inverse(plain(x)), atol=1e-3, rtol=0)
    np.testing.assert_allclose(operator.vectors, 3 * plain.vectors)
    read = cls.from_description(operator.describe((0.5, 0.5)), (2, 11, 30))
    assert torch.equal(read(x), operator(x))
    with pytest.raises(InputError, match="no geometry for view-by-view vectors"):
        _ = operator.geometry


def test_filtered_back_projection_of_an_inclined_detector() -> None:
    """Bins of 1 on a detector inclined by 30 degrees look like bins of cos(30 degrees)."""
    upright = ParallelBeamCT((1, 32, 32), angles=60, detectors=60, spacing=np.cos(np.pi / 6))
    vectors = upright.vectors
    ray, step = vectors[:, :2] / np.linalg.norm(vectors[:, :2], axis=1, keepdims=True), vectors[:, 4:]
    vectors[:, 4:] = step + np.tan(np.pi / 6) * np.linalg.norm(step, axis=1, keepdims=True) * ray
    inclined = ParallelBeamCT((1, 32, 32), vectors=vectors, detectors=60)
    x = image(32)
    np.testing.assert_allclose(inclined(x), upright(x), atol=1e-3)
    np.testing.assert_allclose(inclined.pseudo_inverse(upright(x)), upright.pseudo_inverse(upright(x)), atol=1e-2)


# --- TIGRE ------------------------------------------------------------------------------------------------------


def tigre(**more: Any) -> SimpleNamespace:
    """Distances of 5 and 20 from source to axis and detector, in Python's order: z, y, x and v, u."""
    given = {
        "DSO": 5.0, "DSD": 20.0, "nVoxel": np.array([4, 6, 6]), "dVoxel": np.full(3, 0.5),
        "nDetector": np.array([7, 9]), "dDetector": np.array([1.5, 1.25]), "mode": "cone",
    }  # fmt: skip
    return SimpleNamespace(**(given | more))


def about_z(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def orbit(source: Any, detector: Any, right: Any, up: Any) -> np.ndarray:
    """ASTRA's vectors of a system that turns clockwise about z, as the package CIL gives them."""
    return np.array([np.ravel([about_z(-turn) @ part for part in (source, detector, right, up)]) for turn in TURNS])


# The same systems in the words of ASTRA and of TIGRE, as CIL 24 converts them (its tests test_PluginsTigre_General).
S, YAW = 0.5**0.5, np.arcsin(0.6)
SYSTEMS: dict[str, tuple[dict[str, Any], float, list[Any]]] = {
    "circular": ({}, 0, [[0, -5, 0], [0, 15, 0], [1.25, 0, 0], [0, 0, 1.5]]),
    "axis to the side": (
        {"DSO": 5.0, "DSD": 6.4, "offDetector": np.array([0, -4.8, 0]), "rotDetector": np.array([0, 0, YAW])},
        YAW, [[-3, -4, 0], [-3, 4, 0], [1.25, 0, 0], [0, 0, 1.5]],
    ),
    "inclined axis": (
        {"DSO": 10 * S, "DSD": 20 * S, "offDetector": np.array([-20 * S, 0, 0]), "offOrigin": np.array([-10 * S, 0, 0]),
         "rotDetector": np.array([0, -np.pi / 4, 0])},
        0, [TILT @ [0, -10, 0], TILT @ [0, 10, 0], [1.25, 0, 0], TILT @ [0, 0, 1.5]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_tigre_cone_beam(name: str) -> None:
    settings, yaw, system = SYSTEMS[name]
    operator = from_tigre(tigre(**settings), -(TURNS + np.pi / 2 + yaw))
    assert isinstance(operator, ConeBeamCT)
    assert (operator.shape, operator.range, operator.thickness) == ((4, 6, 6), (1, 13, 7, 9), 1)
    np.testing.assert_allclose(operator.vectors, orbit(*system), atol=1e-9)
    assert isinstance(operator.rays, CircularRays if name != "inclined axis" else FreeRays)


def test_tigre_settings_of_each_view() -> None:
    """`COR` and `offOrigin` move the volume, with the distances of each view."""
    views = len(TURNS)
    plain = from_tigre(tigre(), TURNS)
    moved = from_tigre(
        tigre(COR=np.full(views, 0.3), offOrigin=np.tile([0.1, 0.2, 0.3], (views, 1)), DSD=np.full(views, 20.0)), TURNS
    )
    assert isinstance(plain, ConeBeamCT)
    assert isinstance(moved, ConeBeamCT)
    shift = 0.3 * np.stack([-np.sin(TURNS), np.cos(TURNS), 0 * TURNS], axis=1) - [0.3, 0.2, 0.1]
    expected = plain.vectors + np.concatenate([shift, shift, np.zeros((views, 6))], axis=1)
    np.testing.assert_allclose(moved.vectors, expected, atol=1e-9)


def test_tigre_parallel_beam() -> None:
    """As a cone beam with a source very far away."""
    flat = {"nVoxel": np.array([4, 24, 24]), "nDetector": np.array([4, 69]), "dDetector": np.array([0.5, 0.5])}
    flat["offDetector"] = np.array([0, 0.2])
    parallel = from_tigre(tigre(mode="parallel", **flat), TURNS)
    far = from_tigre(tigre(DSO=1e5, DSD=1e5 + 10, **flat), TURNS)
    assert isinstance(parallel, ParallelBeamCT)
    x = blob(24).repeat(4, 1, 1, 1)
    found, expected = parallel(x) * parallel.unit((0.5, 0.5)), far(x)[0] * far.unit((0.5, 0.5))
    assert (found[:, 0] - expected.swapaxes(0, 1)).abs().max() < 0.03 * expected.max()


@pytest.mark.parametrize(
    ("change", "angles", "line"),
    [
        ({"DSO": "far"}, TURNS, "DSO of TIGRE's geometry is 'far'; expected 1 finite"),
        ({"offOrigin": np.zeros((4, 3))}, TURNS, "offOrigin of TIGRE's geometry"),
        ({"nVoxel": np.array([4, 6, 5])}, TURNS, "slices of 6 x 5 voxels of 0.5 x 0.5"),
        ({}, np.zeros((5, 2)), r"angles of shape \(5, 2\)"),
        ({"mode": "parallel"}, TURNS, "a parallel beam with 7 rows and 4 slices"),
    ],
)
def test_tigre_geometries_that_are_not_supported(change: dict[str, Any], angles: np.ndarray, line: str) -> None:
    with pytest.raises(InputError, match=line):
        from_tigre(tigre(**change), angles)
