"""A measurement in two parts: what one has, the other has not, and together they are the whole."""

import pytest
import torch
from helpers import smooth_maps
from operators import BUILT_IN, CARTESIAN, CT, FORWARD, PER_SLICE, SLICES, UNCOUPLED, inner, random_pair, table, volume
from torch import Tensor

from ddip_pl.errors import InputError
from ddip_pl.physics import (
    SENSE,
    ConeBeamCT,
    LinearOperator,
    Measurement,
    NonCartesianMRI,
    ParallelBeamCT,
    PoissonDisc,
    Radial,
    SingleCoilMRI,
    Spiral,
    simulate,
)
from ddip_pl.physics.held_out import Masked, split

SIZE = 16


def measure(operator: LinearOperator, sigma_y: float = 1e-2) -> Measurement:
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    return Measurement(simulate(x, operator, sigma_y, torch.Generator().manual_seed(1)), operator, sigma_y, x)


def readouts(operator: LinearOperator) -> Tensor:
    """The distinct labels."""
    labels = operator.readouts()
    assert labels.shape == operator.range[1:]
    return labels[labels >= 0].unique()


# --- the two parts --------------------------------------------------------------------------------------------


@table(FORWARD)
def test_the_parts_add_up_to_the_measurement(make):
    operator = make(volume(12))
    measurement = measure(operator)
    kept, hidden = split(measurement, 0.25)
    torch.testing.assert_close(kept.y + hidden.y, operator.sampled(measurement.y))
    assert not (kept.y * hidden.y).any()
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kept.misfit(x) + hidden.misfit(x), measurement.misfit(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept.noise_energy() + hidden.noise_energy(), measurement.noise_energy())
    assert min(float(part.operator.values(part.y).sum()) for part in (kept, hidden)) > 0
    assert kept.reference is hidden.reference is measurement.reference
    torch.testing.assert_close(kept.operator.visible(x), operator.visible(x))


@table(FORWARD)
def test_adjoint_of_a_part(make):
    operator = make(volume(12)).double()
    for part in split(Measurement(operator(operator.zeros()), operator, 1.0), 0.3):
        x, y = random_pair(part.operator, torch.float64)
        assert abs(inner(part.operator(x), y) - inner(x, part.operator.adjoint(y))) <= 1e-5 * x.norm() * y.norm()


@table(CT | CARTESIAN)
def test_a_part_is_an_operator_like_any_other(make):
    part, _ = split(measure(make(volume(12))), 0.3)
    assert part.operator.check().norm <= 1.001
    direct = part.operator.pseudo_inverse(part.y)
    assert direct.shape == part.operator.domain
    assert part.misfit(direct).sum() < 0.1 * part.misfit(torch.zeros_like(direct)).sum()


@table(BUILT_IN)
def test_the_truth_leaves_only_noise_in_both_parts(make):
    measurement = measure(make(volume(12)), 0.1)
    for part in split(measurement, 0.5):
        assert part.discrepancy(measurement.reference) == pytest.approx(1, abs=0.25)


@table(FORWARD)
def test_other_readouts_can_be_hidden_in_each_slice(make):
    operator = make(volume(12))
    measurement = measure(operator)
    kept, hidden = split(measurement, 0.25, together=1)
    torch.testing.assert_close(kept.y + hidden.y, operator.sampled(measurement.y))
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kept.misfit(x) + hidden.misfit(x), measurement.misfit(x), rtol=1e-4, atol=1e-6)
    labels, chosen = operator.readouts(), []
    for some, there in zip(hidden.y != 0, operator.sampled(torch.ones_like(measurement.y)) != 0, strict=True):
        chosen.append(tuple(labels[some].unique().tolist()))
        count = len(labels[there & (labels >= 0)].unique())
        assert len(chosen[-1]) == min(max(1, round(0.25 * count)), count - 1)
    if operator.coupled == 1 and count > 4:
        assert len(set(chosen)) > 1


def test_the_same_readouts_can_be_hidden_in_neighbouring_slices():
    _, hidden = split(measure(ParallelBeamCT((5, SIZE, SIZE), 40)), 0.2, together=2)
    views = [tuple((one != 0).any(-1).nonzero().flatten().tolist()) for one in hidden.y]
    assert views[0] == views[1]
    assert views[2] == views[3]
    assert len(set(views)) == 3


@pytest.mark.parametrize("name", [name for name in PER_SLICE if name in UNCOUPLED and ".T" not in name])
def test_some_of_the_slices(name):
    measurement = measure(FORWARD[name](volume(12)))
    for part in split(measurement, 0.3):
        x = torch.rand(measurement.operator.domain, generator=torch.Generator().manual_seed(2))
        some = part[[2, 0]]
        assert torch.equal(some.y, part.y[[2, 0]])
        torch.testing.assert_close(some.misfit(x[[2, 0]]), part.misfit(x)[[2, 0]])
        torch.testing.assert_close(some.noise_energy(), part.noise_energy()[[2, 0]])


def test_a_mask_of_each_slice_is_selected_with_it():
    operator = ParallelBeamCT((SLICES, SIZE, SIZE), 5)
    mask = torch.zeros(operator.range, dtype=torch.bool)
    for i in range(SLICES):
        mask[i, :, i] = True
    masked, x = Masked(operator, mask), torch.rand(operator.domain)
    assert masked.values(operator(x)).tolist() == [operator.detectors] * SLICES
    torch.testing.assert_close(masked.select([1])(x[[1]]), masked(x)[[1]])


def test_slices_measured_together():
    measurement = measure(ConeBeamCT((SLICES, SIZE, SIZE), 9))
    x = torch.rand(measurement.operator.domain)
    for part in split(measurement, 0.3):
        some = part.given(lambda: x)[[1]]
        torch.testing.assert_close(some.misfit(x[[1]]), part.misfit(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.noise_energy(), part.noise_energy())


def test_hiding_again():
    kept, hidden = split(measure(ParallelBeamCT((SLICES, SIZE, SIZE), 12)), 0.25)
    again, other = split(kept, 0.25)
    views = [part.operator.readouts().unique().tolist() for part in (again, other, hidden)]
    assert sorted({label for labels in views for label in labels}) == [-1, *range(12)]
    assert sum(len(labels) - 1 for labels in views) == 12


# --- what is hidden -------------------------------------------------------------------------------------------

SHAPE = 2, SIZE, SIZE
LINES = torch.zeros(SIZE, SIZE)
LINES[:, [2, 5, 7, 8, 9, 12, 14]] = 1  # two of them are the centre
BOARD = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 == 0  # one point of it is the centre


@pytest.mark.parametrize(
    ("operator", "count"),
    [
        (lambda: ParallelBeamCT(SHAPE, 9), 9),
        (lambda: ConeBeamCT(SHAPE, 9), 9),
        (lambda: ParallelBeamCT(SHAPE, 9).stack(ParallelBeamCT(SHAPE, 4)), 13),
        (lambda: SENSE(SHAPE, LINES, smooth_maps(SIZE, SIZE)), 5),
        (lambda: SENSE(SHAPE, LINES.T, smooth_maps(SIZE, SIZE)), 5),
        (lambda: SENSE(SHAPE, BOARD, smooth_maps(SIZE, SIZE)), 127),
        (lambda: SingleCoilMRI(SHAPE, LINES, complex_image=True), 5),
        (lambda: SingleCoilMRI(SHAPE, LINES), 3),  # of real images: 2 goes with 14, and 9 with the centre
        (lambda: NonCartesianMRI(SHAPE, Radial(7), smooth_maps(SIZE, SIZE)), 7),
        (lambda: NonCartesianMRI(SHAPE, Spiral(3)), 3),
    ],
)
def test_what_is_measured_together_is_hidden_together(operator, count):
    operator = operator()
    assert len(readouts(operator)) == count
    _, hidden = split(measure(operator), 0.3)
    labels, there = operator.readouts(), (hidden.y != 0).any(0)
    assert len(labels[there].unique()) == round(0.3 * count)
    assert not labels[there].unique()[:, None].eq(labels[~there & (labels >= 0)].unique()).any()


def test_a_trajectory_without_jumps_has_a_readout_for_each_sample():
    operator = NonCartesianMRI(SHAPE, Spiral(1))
    assert len(readouts(operator)) == operator.range[-1]


@pytest.mark.parametrize("size", [15, 16])
def test_conjugate_values_are_hidden_together(size):
    full = torch.ones(size, size)
    full[0, 0] = 0  # not all lines
    real, complex_ = (SingleCoilMRI((1, size, size), full, complex_image=flag) for flag in (False, True))
    assert len(readouts(complex_)) == size**2 - 1 - {15: 2, 16: 4}[size] ** 2  # the corner, the centre
    y = torch.fft.fftshift(torch.fft.fft2(torch.rand(size, size)))
    labels = real.readouts()[0]
    for label in labels[labels >= 0].unique()[:20]:
        values = y[labels == label]
        assert len(values) <= 2
        torch.testing.assert_close(values[0].conj() if len(values) == 2 else values[0], values[-1])


@pytest.mark.parametrize("complex_image", [True, False])
def test_the_centre_of_kspace_is_kept(complex_image):
    operator = SingleCoilMRI((1, 32, 32), PoissonDisc(4, centre=0.2), complex_image)
    kept, _ = split(measure(operator), 0.9)
    assert kept.operator.sampled(torch.ones(operator.range))[..., 13:19, 13:19].all()


@pytest.mark.parametrize(("angles", "share", "count"), [(60, 0.1, 6), (7, 0.01, 1), (2, 0.9, 1), (10, 0.99, 9)])
def test_hidden_views_are_spread_over_all_directions(angles, share, count):
    _, hidden = split(measure(ParallelBeamCT((1, SIZE, SIZE), angles)), share)
    views = (hidden.y != 0).any(-1).flatten().nonzero().flatten().tolist()
    assert len(views) == count
    assert all(i * angles // count <= view < (i + 1) * angles // count for i, view in enumerate(views))


def test_the_seed_decides():
    measurement = measure(ParallelBeamCT((1, SIZE, SIZE), 30))
    state = torch.get_rng_state()
    first, second, third = (split(measurement, 0.2, seed)[1].y for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("angles", "share", "message"),
    [(9, 0, "share of hidden data is 0; give"), (9, 1.0, "share"), (1, 0.1, "1 readout cannot be split")],
)
def test_what_cannot_be_hidden(angles, share, message):
    with pytest.raises(InputError, match=message):
        split(measure(ParallelBeamCT((1, SIZE, SIZE), angles)), share)
