"""ODL operators: forward as in ODL, adjoint for plain inner products, gradients, slices and volumes."""

import numpy as np
import odl
import pytest
import torch
from odl.applications.tomo import Parallel2dGeometry, RayTransform
from odl.core.discr.diff_ops import Gradient, Laplacian, PartialDerivative
from odl.core.discr.partition import nonuniform_partition, uniform_partition

from ddip_pl.errors import InputError
from ddip_pl.physics import ODLOperator, ParallelBeamCT
from ddip_pl.physics.operator import inner

PLANE = odl.uniform_discr([-4.0, -4.0], [4.0, 4.0], (16, 16), dtype="float64")  # pixels of 0.5: weights are not 1
RAYS = odl.uniform_discr([-4.0, -4.0], [4.0, 4.0], (16, 16), dtype="float32")  # as ASTRA needs it
BOX = odl.uniform_discr([0, -3, -3], [4, 3, 3], (4, 6, 6), dtype="float32")
MATRIX = np.random.default_rng(0).normal(size=(20, 36))


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def ray_transform():
    geometry = Parallel2dGeometry(uniform_partition(0, np.pi, 9), uniform_partition(-6, 6, 20))
    return RayTransform(RAYS, geometry, impl="astra_cpu")


class Weighted(odl.Operator):
    """A matrix between spaces with a weight for each value, and its adjoint."""

    def __init__(self):
        domain = odl.rn(36, weighting=np.linspace(1, 3, 36))
        super().__init__(domain, odl.rn(20, weighting=np.linspace(2, 1, 20)), linear=True)

    def _call(self, x):
        return self.range.element(MATRIX @ x.asarray())

    @property
    def adjoint(self):
        weights = self.range.weighting.array / self.domain.weighting.array[:, None]
        return odl.MatrixOperator(MATRIX.T * weights, self.range, self.domain)


OPERATORS = {
    "rays": lambda: ODLOperator(ray_transform(), (3, 16, 16)),
    "matrix": lambda: ODLOperator(odl.MatrixOperator(MATRIX), (2, 6, 6)),
    "derivative": lambda: ODLOperator(PartialDerivative(PLANE, axis=1, pad_mode="constant"), (2, 16, 16)),
    "gradient": lambda: ODLOperator(Gradient(PLANE, pad_mode="constant"), (2, 16, 16)),
    "volume": lambda: ODLOperator(Laplacian(BOX, pad_mode="constant")),
    "across": lambda: ODLOperator(PartialDerivative(BOX, axis=0, pad_mode="constant")),
    "volume matrix": lambda: ODLOperator(odl.MatrixOperator(MATRIX), (4, 3, 3)),
    "weighted": lambda: ODLOperator(Weighted(), (1, 6, 6)),
    "complex": lambda: ODLOperator(odl.MatrixOperator(MATRIX + 1j * MATRIX[::-1], odl.cn(36), odl.cn(20)), (2, 6, 6)),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]()


def test_check(operator):
    found = operator.check()
    assert found.adjointness < 1e-5
    assert found.gradient < 1e-5
    unit = operator.normalised()
    assert unit.check().norm == pytest.approx(1, abs=0.01)
    assert unit.norm == pytest.approx(1, abs=1e-5)


def test_many_slices_equal_slice_by_slice(operator):
    assert operator.range[0] == operator.shape[0] / operator.coupled
    x = random(*operator.domain)
    y = operator(x)
    assert tuple(y.shape) == operator.range
    groups = x.split(operator.coupled)
    assert torch.equal(y, torch.cat([operator(group) for group in groups]))
    assert torch.equal(operator.adjoint(y), torch.cat([operator.adjoint(part) for part in y.split(1)]))


def test_some_slices(operator):
    last = operator.shape[0] - 1
    part, x = operator.select([last]), torch.zeros(operator.domain)
    x[last] = random(*operator.domain[1:])
    expected = operator(x) if operator.coupled > 1 else operator(x)[-1:]
    torch.testing.assert_close(part(x[last:]), expected)
    assert part.shape == (1, *operator.shape[1:])
    y = random(*operator.range).to(expected.dtype)
    torch.testing.assert_close(part.adjoint(y[-1:]), operator.adjoint(y)[last:])
    assert operator.select([0]).select([0]).domain == part.domain


def test_forward_is_that_of_odl():
    transform, x = ray_transform(), random(3, 1, 16, 16)
    expected = np.stack([transform(RAYS.element(image[0].numpy())).asarray() for image in x])
    torch.testing.assert_close(ODLOperator(transform)(x), torch.from_numpy(expected).float())
    matrix = ODLOperator(odl.MatrixOperator(MATRIX), (4, 3, 3))
    x = random(4, 1, 3, 3)
    torch.testing.assert_close(matrix(x)[0].double(), torch.from_numpy(MATRIX) @ x.double().flatten())
    torch.testing.assert_close(ODLOperator(Gradient(PLANE))(random(1, 1, 16, 16)).shape, torch.Size([1, 2, 16, 16]))


def test_equals_the_built_in_operator():
    """For the same geometry; ODL and we use different units of length."""
    built_in = ParallelBeamCT((2, 16, 16), 7)
    half = np.array([8.0, 8.0])
    space = odl.uniform_discr(-half, half, (16, 16), dtype="float32")
    wrapped = ODLOperator(RayTransform(space, built_in.geometry, impl="astra_cpu"), (2, 16, 16))
    x, y = random(2, 1, 16, 16), random(2, 1, 7, built_in.detectors)
    torch.testing.assert_close(wrapped(x)[:, None] / built_in.scale, built_in(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(wrapped.adjoint(y[:, 0]) / built_in.scale, built_in.adjoint(y), rtol=1e-3, atol=1e-4)
    assert wrapped.norm == pytest.approx(built_in.scale, rel=1e-3)


def test_double_precision_and_gradients():
    for name in "matrix", "derivative", "across", "complex":
        operator = OPERATORS[name]()
        x = random(*operator.domain, dtype=torch.float64)
        y = operator(x)
        assert y.dtype == (torch.complex128 if name == "complex" else torch.float64)
        if name == "across":  # float32 inside
            continue
        other = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        assert inner(y, other) == pytest.approx(inner(x, operator.adjoint(other)), rel=1e-9)
    operator = OPERATORS["matrix"]()
    x = random(1, 1, 6, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradgradcheck(lambda x: operator.normal(x) ** 2, x)


def test_numpy_in_numpy_out():
    operator = OPERATORS["matrix"]()
    assert isinstance(operator(np.ones((2, 1, 6, 6), np.float32)), np.ndarray)
    assert isinstance(operator.adjoint(np.ones((2, 20), np.float32)), np.ndarray)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ODLOperator(odl.MatrixOperator(MATRIX)), r"takes arrays of shape \(36,\); give the shape"),
        (lambda: ODLOperator(odl.MatrixOperator(MATRIX), (2, 5, 5)), r"do not fit volumes of \(2, 5, 5\)"),
        (lambda: ODLOperator(ray_transform(), (2, 8, 8)), "do not fit"),
        (lambda: ODLOperator(odl.ConstantOperator(PLANE.one())), "ConstantOperator is not linear"),
    ],
)
def test_bad_operators(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_adjoint_that_forgets_the_weights_is_found():
    """Such as ODL's own adjoint of a matrix."""
    operator = odl.MatrixOperator(MATRIX, odl.rn(36, weighting=2.0), odl.rn(20, weighting=0.3))
    with pytest.raises(InputError, match="has a wrong adjoint"):
        ODLOperator(operator, (1, 6, 6)).check()


def test_angles_that_are_not_even():
    geometry = Parallel2dGeometry(nonuniform_partition([0.1, 0.5, 2.0]), uniform_partition(-6, 6, 20))
    assert ODLOperator(RayTransform(RAYS, geometry, impl="astra_cpu")).check().adjointness < 1e-5
