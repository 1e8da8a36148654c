"""LoRA: it sits in the right layers, acts, and leaves no trace."""

import pytest
import torch
from helpers import make_network
from torch import Tensor, nn

from ddip_pl.adaptation.lora import LoRA
from ddip_pl.prior.denoiser import Denoiser


@pytest.fixture
def network() -> nn.Module:
    return make_network().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def train(lora: LoRA, denoiser: Denoiser, x: Tensor, steps: int = 3) -> Denoiser:
    """The denoiser with slightly trained weights."""
    optimizer = torch.optim.AdamW(lora.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        denoiser.with_weights(lora.merged(training=True))(x, 100)[0].square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return denoiser.with_weights(lora.merged())


def test_sits_on_every_convolution_and_linear_layer_of_the_blocks(network: nn.Module) -> None:
    kinds = nn.Conv1d, nn.Conv2d, nn.Linear
    expected = {
        name
        for name, layer in network.named_modules()
        if isinstance(layer, kinds) and not name.startswith(("time", "out."))
    }
    assert any("qkv" in name for name in expected)
    assert any("emb_layers" in name for name in expected)
    lora = LoRA(network)
    assert {name.split(".base_layer.")[0] for name in lora.merged()} == expected


def test_does_nothing_before_it_is_trained(network: nn.Module, x: Tensor) -> None:
    denoiser = Denoiser(network)
    before = denoiser(x, 100)[1]
    adapted = denoiser.with_weights(LoRA(network).merged())
    assert torch.allclose(adapted(x, 100)[1], before, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_merged_weights_act_like_pefts_own_layers(network: nn.Module, x: Tensor, bias: bool) -> None:
    denoiser = Denoiser(network)
    lora = LoRA(network, bias=bias)
    merged = train(lora, denoiser, x)(x, 100)[1]
    plain = denoiser(x, 100)[1]
    lora._tuner.enable_adapter_layers()
    peft = denoiser(x, 100)[1]
    assert (merged - peft).norm() < 1e-5 * peft.norm()
    assert (merged - plain).norm() > 1e-3 * plain.norm()


def test_adapted_weights_serve_every_batch(network: nn.Module, x: Tensor) -> None:
    denoiser = Denoiser(network)
    plain = denoiser(x, 100)[1]
    adapted = train(LoRA(network), denoiser, x)
    at_once = adapted(x, 100)[1]
    adapted.batches.size = 1
    assert torch.allclose(adapted(x, 100)[1], at_once, atol=1e-5)
    assert all((a - b).norm() > 1e-3 * b.norm() for a, b in zip(at_once, plain, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_is_removed_without_a_trace(network: nn.Module, x: Tensor, bias: bool) -> None:
    denoiser = Denoiser(network)
    modules = [type(module) for module in network.modules()]
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    before = denoiser(x, 100)[1]
    lora = LoRA(network, bias=bias)
    adapted = train(lora, denoiser, x)
    assert not torch.equal(adapted(x, 100)[1], before)
    lora.remove()
    assert [type(module) for module in network.modules()] == modules
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(denoiser(x, 100)[1], before)
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_trains_factors_and_with_bias_the_biases_of_its_layers_only(network: nn.Module) -> None:
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    with_bias = sum(p.numel() for p in LoRA(network).parameters())
    names = LoRA(make_network().requires_grad_(False), bias=False).state_dict()
    assert all("lora_" in name for name in names)
    factors = sum(value.numel() for value in names.values())
    assert factors < with_bias < factors + biases


def test_rank_sets_the_number_of_factors() -> None:
    sizes = [
        sum(p.numel() for p in LoRA(make_network().requires_grad_(False), rank, bias=False).parameters())
        for rank in (1, 2, 4)
    ]
    assert sizes[1] == 2 * sizes[0]
    assert sizes[2] == 4 * sizes[0]


def test_state_comes_back(network: nn.Module, x: Tensor) -> None:
    denoiser = Denoiser(network)
    lora = LoRA(network)
    adapted = train(lora, denoiser, x)(x, 100)[1]
    state = lora.state_dict()
    lora.remove()
    lora = LoRA(network)
    lora.load_state_dict(state)
    assert torch.equal(denoiser.with_weights(lora.merged())(x, 100)[1], adapted)


def test_dropout_acts_in_training_only(network: nn.Module, x: Tensor) -> None:
    denoiser = Denoiser(network)
    lora = LoRA(network, dropout=0.5)
    train(lora, denoiser, x)
    name = next(iter(lora.merged()))
    assert torch.equal(lora.merged()[name], lora.merged()[name])
    assert not torch.equal(lora.merged(training=True)[name], lora.merged()[name])


@pytest.mark.parametrize("slicewise", [False, True])
def test_norm_is_that_of_the_updates(network: nn.Module, slicewise: bool) -> None:
    lora = LoRA(network, slicewise=slicewise)
    vectors = torch.randn(3, len(lora.flat()), generator=torch.Generator().manual_seed(0))
    norms = []
    for vector in vectors:
        lora.load_state_dict({name: weight[0] for name, weight in lora.split(vector[None]).items()})
        updates = [
            (weight - network.get_parameter(name)).square().sum()
            for name, weight in lora.merged().items()
            if name.endswith("weight")
        ]
        norms.append(torch.stack(updates).sum().sqrt().item())
        assert lora.update_norm(lora.state_dict()) == pytest.approx(norms[-1], rel=1e-5)
    mean_square = sum(norm**2 for norm in norms) / 3
    assert lora.update_norm(lora.split(vectors)) == pytest.approx(mean_square**0.5, rel=1e-5)
