"""Weights on disk: damaged files are refused, those without a checksum are read, and colleagues can read ours."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import make_network, random
from safetensors.torch import load_file, save_file

from ddip_pl.adaptation.lora import LoRA, LoraWeights
from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import WEIGHTS, load_prior, read_pickle, save_prior
from ddip_pl.prior.tensors import CHECKSUM, read_tensors, write_tensors

TENSORS = {"a": random(3, 4), "b": random(5).half(), "scalar": torch.tensor(2), "none": torch.zeros(0, 2)}
TINY = {"image_size": 16, "channel_mult": (1,), "attention_resolutions": (), "num_heads": 2}


def test_round_trip_and_other_programs(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"card": "{}"})
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    for tensors in (found, load_file(tmp_path / "a.safetensors")):
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert metadata["card"] == "{}"
    save_file(TENSORS, tmp_path / "other.safetensors")
    assert read_tensors(tmp_path / "other.safetensors")[0].keys() == TENSORS.keys()


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """In the tensors, and in what the metadata say about them."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"config": '{"num_heads":4}'})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    heads = content.index(b'num_heads\\":4') + 12
    for place in [heads, *range(start, len(content))]:
        for bit in range(3 if place == heads else 8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(InputError, match="checksum is wrong"):
                read_tensors(path)


def test_lora_weights_that_are_damaged_or_not_finite_are_refused(tmp_path: Path) -> None:
    adapter = LoRA(make_network(**TINY), rank=2)
    LoraWeights(adapter.state_dict(), rank=2).save(tmp_path)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-7] + bytes([content[-7] ^ 16]) + content[-6:])
    with pytest.raises(InputError, match=r"LoRA weights .*lora: damaged, its checksum is wrong"):
        LoraWeights.load(tmp_path / "lora")
    tensors = load_file(path)
    tensors[min(tensors)].view(-1)[0] = torch.nan
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "nan.safetensors")
    os.replace(tmp_path / "nan.safetensors", path)
    with pytest.raises(InputError, match=r"LoRA weights .*lora: 1 weights have NaN or infinite values"):
        LoraWeights.load(tmp_path / "lora")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_priors_with_weights_that_are_not_finite_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    """Also those that are only finite in double precision."""
    network = make_network(**TINY)
    weights = {name: weight.double().contiguous() for name, weight in network.state_dict().items()}
    weights["out.2.bias"][0] = value
    path = tmp_path / f"prior{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_prior(path, network, {})
        write_tensors(path, weights, read_tensors(path)[1])
    with pytest.raises(InputError, match=r"1 weights have NaN or infinite values \(first: out\.2\.bias\)"):
        load_prior(path, TINY)


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    """PyTorch itself reads it without a word."""
    path = tmp_path / "prior.pt"
    torch.save(make_network(**TINY).state_dict(), path)
    content = path.read_bytes()
    place = len(content) // 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match=r"the checksum of .* is wrong"):
        read_pickle(path)


@pytest.mark.parametrize(
    "change", [{"image_size": 20000}, {"num_res_blocks": 10**9}, {"num_channels": 2**20}, {"channel_mult": [1] * 1000}]
)
def test_networks_out_of_all_proportion_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save_prior(tmp_path / "prior.safetensors", make_network(**TINY), {})
    with pytest.raises(InputError, match=rf"unusable network settings \({next(iter(change))} is "):
        load_prior(tmp_path / "prior.safetensors", TINY | change)


def test_reading_draws_no_random_numbers(tmp_path: Path) -> None:
    save_prior(tmp_path / "prior.safetensors", make_network(**TINY), {})
    before = torch.get_rng_state()
    load_prior(tmp_path / "prior.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prior", sorted(WEIGHTS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_priors_have_a_checksum(prior: Path) -> None:
    assert CHECKSUM in read_tensors(prior)[1]


def test_what_is_written_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    network = make_network(**TINY)
    before = os.umask(0o027)
    try:
        save_prior(tmp_path / "prior.safetensors", network, {})
        AdaptedWeights(TENSORS).save(tmp_path)
        LoraWeights(LoRA(network, rank=2).state_dict(), rank=2).save(tmp_path)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_prior_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    save_prior(tmp_path / "prior.safetensors", make_network(**TINY), {})
    monkeypatch.setattr("ddip_pl.prior.tensors.safe_open", forbidden)
    with pytest.raises(InputError, match=r"prior\.safetensors: .*Permission denied"):
        load_prior(tmp_path / "prior.safetensors")


def test_settings_nested_beyond_all_measure(tmp_path: Path) -> None:
    LoraWeights(LoRA(make_network(**TINY), rank=2).state_dict(), rank=2).save(tmp_path)
    for text in ("[" * 100_000, json.dumps([]), json.dumps({"peft_type": "LORA", "r": "2", "lora_alpha": "2"})):
        (tmp_path / "lora" / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match="LoRA weights"):
            LoraWeights.load(tmp_path / "lora")


def test_the_checksum_covers_name_type_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ones = torch.ones(4, 2)
    write_tensors(path, {"a": ones}, {})
    known = read_tensors(path)[1][CHECKSUM]
    for other in ({"b": ones}, {"a": ones.view(2, 4)}, {"a": ones.view(torch.int32)}):
        save_file(other, path, {CHECKSUM: known})
        with pytest.raises(InputError, match="checksum is wrong"):
            read_tensors(path)
