"""The ADM U-Net, against outputs of the published network and known numbers of the paper's prior."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import load_prior
from ddip_pl.prior.unet import UNet, UNetConfig, mirrored, timestep_embedding

VECTORS = ("adm_1ch", "adm_2ch_learn_sigma", "adm_new_attention", "adm_plain_updown")
PAPER = UNetConfig(
    image_size=256, num_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,), num_head_channels=64
)


def relative_error(x: Tensor, reference: Tensor) -> float:
    return float(torch.dist(x, reference) / reference.norm())


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def evaluate(network: UNet, x: Tensor, t: float) -> Tensor:
    return network(x, torch.full((len(x),), t))


@pytest.mark.parametrize("name", VECTORS)
def test_published_weights_give_the_published_output(shared_folder: Path, name: str) -> None:
    path = shared_folder / "reference" / f"{name}.pt"
    vector = torch.load(path, weights_only=True)
    with torch.no_grad():
        eps = load_prior(path)(vector["x"], vector["t"])
    assert eps.shape == vector["eps"].shape
    assert relative_error(eps, vector["eps"]) < 1e-5


@pytest.mark.parametrize("name", VECTORS)
def test_parameters_have_the_published_names_shapes_and_order(shared_folder: Path, name: str) -> None:
    path = shared_folder / "reference" / f"{name}.pt"
    theirs = torch.load(path, weights_only=True)["state_dict"]
    ours = {name: parameter.shape for name, parameter in load_prior(path).named_parameters()}
    assert list(ours.items()) == [(name, value.shape) for name, value in theirs.items()]


def test_list_of_averaged_parameters_gives_the_output_of_the_same_weights_by_name(shared_folder: Path) -> None:
    by_name = torch.load(shared_folder / "reference" / "adm_1ch.pt", weights_only=True)
    network = load_prior(shared_folder / "reference" / "adm_1ch_ema_shadow.pt", config=json.loads(by_name["config"]))
    with torch.no_grad():
        assert relative_error(network(by_name["x"], by_name["t"]), by_name["eps"]) < 1e-5


@pytest.mark.parametrize("size", [(32, 32), (4, 4), (20, 36), (30, 33), (1, 7), (3, 32), (115, 90)])
def test_images_may_have_any_size(size: tuple[int, int]) -> None:
    network = make_network(image_size=32, channel_mult=(1, 1, 1), attention_resolutions=(8,))
    eps = evaluate(network, image(2, 1, *size), 500)
    assert eps.shape == (2, 1, *size)
    assert eps.isfinite().all()


def test_images_are_filled_up_with_their_reflection() -> None:
    network = make_network(image_size=32, channel_mult=(1, 1, 1), attention_resolutions=(8,))
    x = image(1, 1, 7, 1)
    by_hand = torch.cat([x, x[:, :, 6:]], dim=2).expand(-1, -1, -1, 4)
    assert torch.equal(mirrored(x, 4), by_hand)
    assert torch.equal(evaluate(network, x, 500), evaluate(network, by_hand, 500)[:, :, :7, :1])


class LargestTensor(TorchDispatchMode):
    """Keeps the number of values of the largest tensor that any operation returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_memory_grows_with_the_pixels_and_not_with_pairs_of_them(new_order: bool, adapted: bool) -> None:
    network, t = make_network(use_new_attention_order=new_order).requires_grad_(adapted), torch.tensor([400])
    largest = []
    for size in (64, 128):
        with LargestTensor() as mode:
            eps = network(image(1, 1, size, size), t)
            if adapted:
                eps.sum().backward()
        largest.append(mode.values)
    assert largest[1] == 4 * largest[0]


def test_slices_of_a_batch_do_not_see_each_other() -> None:
    network, x = make_network(), image(3, 1, 32, 32)
    together = evaluate(network, x, 400)
    alone = torch.cat([evaluate(network, x[i : i + 1], 400) for i in range(3)])
    assert relative_error(together, alone) < 1e-5


def test_output_depends_on_the_timestep_of_each_slice() -> None:
    network, x = make_network(), image(1, 1, 32, 32).expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = network(x, torch.tensor([10.0, 900.0]))
    assert relative_error(first[None], evaluate(network, x[:1], 10)) < 1e-5
    assert relative_error(second, first) > 1e-2


def test_integer_and_floating_timesteps_are_the_same() -> None:
    network, x = make_network(), image(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x, torch.tensor([3, 871])), network(x, torch.tensor([3.0, 871.0])))


def test_timestep_embedding_holds_cosines_then_sines_of_falling_frequency() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 7.0]), 4)
    phase = torch.tensor([7.0, 7.0 / 100])
    torch.testing.assert_close(embedding[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(embedding[1], torch.cat([phase.cos(), phase.sin()]))


def test_untrained_network_predicts_no_noise() -> None:
    network = UNet(UNetConfig(image_size=16, channel_mult=(1, 1)))
    assert not evaluate(network, image(1, 1, 16, 16), 5).any()


def test_new_and_legacy_attention_read_the_same_weights_differently() -> None:
    legacy = make_network(num_head_channels=16)
    new = UNet(replace(legacy.config, use_new_attention_order=True)).eval()
    new.load_state_dict(legacy.state_dict())
    x = image(1, 1, 32, 32)
    assert relative_error(evaluate(new, x, 500), evaluate(legacy, x, 500)) > 1e-4


def test_new_and_legacy_attention_agree_for_a_single_head() -> None:
    legacy = make_network(num_heads=1)
    new = UNet(replace(legacy.config, use_new_attention_order=True)).eval()
    new.load_state_dict(legacy.state_dict())
    x = image(1, 1, 32, 32)
    torch.testing.assert_close(evaluate(new, x, 500), evaluate(legacy, x, 500))


@pytest.mark.parametrize(
    ("settings", "channels"),
    [({"in_channels": 2}, 2), ({"in_channels": 2, "learn_sigma": True}, 4), ({"out_channels": 3}, 3)],
)
def test_output_channels_follow_from_input_and_variance(settings: dict[str, int], channels: int) -> None:
    network = make_network(**settings)
    assert evaluate(network, image(1, network.in_channels, 32, 32), 5).shape == (1, channels, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 34, "channel_mult": (1, 1, 2)}, "image_size is 34; 3 levels need a multiple of 4"),
        ({"num_channels": 48}, "num_channels is 48; group normalisation needs a multiple of 32"),
        ({"num_heads": 5}, "attention over 32 channels cannot be split into heads of 6 channels"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_network(**settings)
    assert str(error.value) == message


def test_unknown_settings_are_no_settings() -> None:
    with pytest.raises(TypeError, match="depth"):
        UNetConfig(image_size=32, depth=3)  # type: ignore[call-arg]


def test_paper_network_has_374_million_parameters_and_takes_1546_gflop() -> None:
    with torch.device("meta"):
        network = UNet(PAPER)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 1, 256, 256), torch.empty(1))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 374.0
    assert round(counter.get_total_flops() / 1e9) == 1546


def test_attention_stands_at_the_resolutions_of_the_settings_and_in_the_middle() -> None:
    with torch.device("meta"):
        names = dict(UNet(PAPER).named_modules())
    blocks = {name.rsplit(".", 1)[0] for name in names if name.endswith(".qkv")}
    # 16x16 is the fifth of six levels: two entries per level after the first convolution, two per level from below.
    assert blocks == {"input_blocks.9.1", "middle_block.1", "output_blocks.2.1", "output_blocks.3.1"}
