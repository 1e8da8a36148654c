"""What a measurement tells about images."""

import pytest
import torch
from torch import Tensor

from ddip_pl.physics.measurement import Measurement
from ddip_pl.physics.operator import LinearOperator


class Difference(LinearOperator):
    """Between neighbouring columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x.diff(dim=-1)


def test_residual_is_relative() -> None:
    operator = Difference((2, 16, 16))
    x = torch.rand(operator.domain, generator=torch.Generator().manual_seed(0))
    measurement = Measurement(operator(x), operator, 0.0)
    assert measurement.relative_residual(x) < 1e-6
    assert measurement.relative_residual(1.5 * x) == pytest.approx(0.5, abs=1e-5)
