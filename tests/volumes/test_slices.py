"""Slices of a volume: selected, turned upright, resized, scaled to [0, 1]."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ddip_pl.errors import InputError
from ddip_pl.volumes.slices import cut, fit, to_unit_interval
from ddip_pl.volumes.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
DEPTH_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
AFFINE = np.array([[1.9, -0.2, 0.1, -30], [0.2, 1.4, 0.3, 12], [-0.1, 0.2, 3.0, 5], [0, 0, 0, 1]])


def numbered(*shape: int) -> Volume:
    """A volume whose voxels have the values 0, 1, 2, ..."""
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), AFFINE)


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Scanner coordinates of all voxels, `(*shape, 3)`."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


# --- cut --------------------------------------------------------------------------------------------------


@given(st.data())
def test_each_pixel_lies_where_its_voxel_lies(data):
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    plane = data.draw(st.sampled_from(PLANES))
    depth = shape[DEPTH_AXIS[plane]]
    count = data.draw(st.none() | st.integers(1, depth))
    first = data.draw(st.none() | st.integers(0, depth - (count or 1)))
    volume = numbered(*shape)

    images, affine = cut(volume, plane, first, count)

    voxels = np.stack(np.unravel_index(images.astype(int), shape), axis=-1)
    expected = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(positions(images.transpose(2, 1, 0).shape, affine).transpose(2, 1, 0, 3), expected)
    assert len(np.unique(images)) == images.size == volume.data.size // depth * len(images)

    taken = voxels[:, 0, 0, DEPTH_AXIS[plane]]
    before, after = taken[0], depth - 1 - taken[-1]
    assert len(images) == (count or depth - (first or 0))
    assert (taken == taken[0] + np.arange(len(images))).all()
    assert before == first if first is not None else 0 <= after - before <= 1


@pytest.mark.parametrize(("plane", "up"), [("axial", 1), ("coronal", 2), ("sagittal", 2)])
def test_images_are_upright(plane, up):
    shape = (4, 5, 6)
    height = np.broadcast_to(np.arange(shape[up]).reshape([-1 if a == up else 1 for a in range(3)]), shape)
    images, _ = cut(Volume(height.astype(np.float32), np.eye(4)), plane, None, None)
    assert (images[:, 0] == shape[up] - 1).all()
    assert (images[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("first", "count", "message"),
    [
        (None, 7, "data.slices is 7; the volume has 6 axial slices"),
        (None, 0, "data.slices is 0"),
        (None, -1, "data.slices is -1"),
        (6, None, "data.first is 6"),
        (-1, 3, "data.first is -1 and data.slices is 3"),
        (4, 3, "data.first is 4 and data.slices is 3"),
    ],
)
def test_slices_that_are_not_there(first, count, message):
    with pytest.raises(InputError, match=message):
        cut(numbered(4, 5, 6), "axial", first, count)


# --- fit --------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 16), columns=st.integers(1, 16))
def test_small_images_are_padded_around_and_otherwise_left_alone(rows, columns):
    images = torch.rand(2, 1, rows, columns, generator=torch.Generator().manual_seed(0))
    padded, (top, bottom, left, right), affine = fit(images, (16, 16), enlarge=False)
    assert padded.shape == (2, 1, 16, 16)
    assert torch.equal(padded[..., top : 16 - bottom, left : 16 - right], images)
    assert padded.sum() == pytest.approx(images.sum().item(), rel=1e-5)
    assert 0 <= bottom - top <= 1
    assert 0 <= right - left <= 1
    np.testing.assert_array_equal(affine, np.eye(4))


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    weight = image.double() / image.sum()
    return np.array([(columns * weight).sum(), (rows * weight).sum()])


@given(
    rows=st.integers(20, 90),
    columns=st.integers(20, 90),
    centre=st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
    enlarge=st.booleans(),
)
def test_a_blob_stays_where_it_was(rows, columns, centre, enlarge):
    y, x = torch.arange(rows) - centre[0] * rows, torch.arange(columns) - centre[1] * columns
    blob = torch.exp(-((x / columns * 10) ** 2 + (y[:, None] / rows * 10) ** 2) / 2)
    fitted, (top, bottom, left, right), affine = fit(blob[None, None], (32, 32), enlarge)
    inside = fitted[0, 0, top : 32 - bottom, left : 32 - right]
    factor = 32 / max(rows, columns) if enlarge else min(1, 32 / max(rows, columns))
    assert max(inside.shape) == round(max(rows, columns) * factor)
    assert min(inside.shape) == pytest.approx(min(rows, columns) * factor, abs=0.5)
    found = affine @ [*centre_of_mass(inside), 0, 1]
    np.testing.assert_allclose(found, [*centre_of_mass(blob), 0, 1], atol=0.05)


@given(rows=st.integers(1, 60), columns=st.integers(1, 60), seed=st.integers(0, 5))
def test_values_stay_between_zero_and_one(rows, columns, seed):
    images = (torch.rand(1, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    fitted, _, _ = fit(images, (20, 20), enlarge=False)
    assert fitted.shape == (1, 1, 20, 20)
    assert fitted.min() >= 0
    assert fitted.max() <= 1


@given(size=st.tuples(*[st.integers(4, 40)] * 2), old=st.tuples(*[st.integers(4, 40)] * 2), enlarge=st.booleans())
@example(size=(4, 4), old=(4, 37), enlarge=False)  # the shorter side would shrink to less than a pixel
def test_height_and_width_may_differ(size, old, enlarge):
    fitted, (top, bottom, left, right), affine = fit(torch.ones(1, 1, *old), size, enlarge)
    assert fitted.shape == (1, 1, *size)
    inside = fitted[0, 0, top : size[0] - bottom, left : size[1] - right]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert fitted.sum() == pytest.approx(inside.numel(), rel=1e-5)
    shares = [new / length for new, length in zip(inside.shape, size, strict=True)]
    assert max(shares) == 1 or (not enlarge and tuple(inside.shape) == old)
    stretch = [affine[1, 1] * inside.shape[0] / old[0], affine[0, 0] * inside.shape[1] / old[1]]
    assert stretch == pytest.approx([1, 1])
    factor = min(size[0] / old[0], size[1] / old[1], float("inf") if enlarge else 1)
    for new, length in zip(inside.shape, old, strict=True):
        assert abs(new - length * factor) <= 0.5 or (new == 1 and length * factor < 1)


def test_shrinking_averages_what_it_cannot_show():
    checkerboard = torch.eye(2).repeat(48, 48)[None, None]  # without antialiasing only every third pixel would count
    inner = fit(checkerboard, (32, 32), enlarge=False)[0][..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.15, rtol=0)


# --- intensities ------------------------------------------------------------------------------------------


def test_the_window_becomes_zero_to_one():
    hounsfield = np.array([-3000, -1000, -500, 0, 1000, 3000], np.float32)
    np.testing.assert_allclose(to_unit_interval(hounsfield, (-1000, 1000)), [0, 0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((5, 1), r"\(5, 1\)"),
        ((1, 1), "below"),
        ((float("nan"), 1), "below"),
        ((50, 60), "constant inside"),
        ((-9, -8), "constant inside"),
        ((-1000, 1000), r"values 0\.0 \.\. 9\.0, less than 1 % of data.window \(-1000, 1000\)"),
    ],
)
def test_windows_in_which_nothing_is_to_be_seen(window, message):
    with pytest.raises(InputError, match=message):
        to_unit_interval(np.arange(10.0), window)
