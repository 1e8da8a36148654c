"""The prior as sampling uses it: batches, planes and weights of a volume."""

import pytest
import torch
from helpers import Known, images, make_network
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


def test_denoiser_sees_the_plane_it_is_for() -> None:
    class RowGradient(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.arange(x.shape[2])[:, None] + 100 * torch.arange(x.shape[3])

    denoiser, x_t = Denoiser(RowGradient(), batch_size=2), torch.ones(3, 1, 4, 5)
    slices, rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    expected: dict[Plane, Tensor] = {
        "slices": rows + 100 * columns, "rows": slices + 100 * columns, "columns": rows + 100 * slices
    }  # fmt: skip
    for plane, eps in expected.items():
        assert torch.equal(denoiser.across(plane)(x_t, 300)[1], eps[:, None].float())
    assert torch.equal(denoiser(x_t, 300)[1], expected["slices"][:, None].float())


def test_a_view_leaves_the_denoiser_as_it_was_and_shares_its_network() -> None:
    denoiser = Denoiser(make_network()).requires_grad_(False)
    x_t = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    before = denoiser(x_t, 100)[1]
    weights = {name: 1.1 * value for name, value in denoiser.network.named_parameters() if name.endswith("bias")}
    view = denoiser.with_weights(weights)
    assert view.network is denoiser.network
    assert not torch.allclose(view(x_t, 100)[1], before, atol=1e-4)
    assert view.across("rows").weights is view.weights
    assert view.only(slice(1)) is view  # all slices have the same weights
    assert torch.equal(denoiser(x_t, 100)[1], before)


def test_every_slice_has_weights_of_its_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * self.factor.view(-1, 1, 1, 1)

    x_t, factors = torch.ones(5, 1, 4, 4), torch.arange(5.0)
    view = Denoiser(Scaled(), batch_size=2).with_weights({"factor": factors}, slicewise=True)
    assert torch.equal(view(x_t, 300)[1], factors.view(-1, 1, 1, 1) * x_t)
    assert torch.equal(view.only(slice(3, 5))(x_t[3:5], 300)[1], factors[3:5].view(-1, 1, 1, 1) * x_t[3:5])
    with pytest.raises(AssertionError, match=r"Denoiser\.only"):
        view(x_t[:2], 300)
    with pytest.raises(AssertionError, match="images of other planes do not"):
        view.across("columns")
