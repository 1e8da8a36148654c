"""The denoiser: batches, planes."""

import pytest
import torch
from helpers import Known, images
from torch import Tensor, nn

from ddip_pl.prior.denoiser import Denoiser, Plane


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_denoiser_takes_a_batch_at_a_time(batch_size: int) -> None:
    sizes: list[int] = []

    class Spy(Known):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x, t) * (1 + x.mean((1, 2, 3), keepdim=True))  # slices differ from each other

    x_t = images(5)
    x0_hat, eps = Denoiser(Spy(), batch_size)(x_t, 300)
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 5: [5], 8: [5]}[batch_size]
    assert torch.allclose(eps, 0.1 * x_t * (1 + x_t.mean((1, 2, 3), keepdim=True)))
    abar = Denoiser(Spy()).abar[300]
    assert torch.allclose(abar.sqrt() * x0_hat + (1 - abar).sqrt() * eps, x_t)


def test_denoiser_sees_the_planes_it_is_told_to() -> None:
    class RowGradient(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.arange(x.shape[2])[:, None] + 100 * torch.arange(x.shape[3])

    denoiser, x_t = Denoiser(RowGradient(), batch_size=2), torch.ones(3, 1, 4, 5)
    slices, rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    expected: dict[Plane, Tensor] = {
        "slices": rows + 100 * columns,
        "rows": slices + 100 * columns,
        "columns": rows + 100 * slices,
    }
    for plane, eps in expected.items():
        assert torch.equal(denoiser.across(plane)(x_t, 300)[1], eps[:, None].float())
    assert torch.equal(denoiser(x_t, 300)[1], expected["slices"][:, None].float())
