"""Files of priors: every published form is read, and every bad file is refused in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_network
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import SCHEDULE, describe, load_prior, parse_config, save_prior
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.prior.unet import UNet, UNetConfig

TINY: dict[str, Any] = {"image_size": 16, "channel_mult": (1,), "attention_resolutions": (), "num_heads": 2}
# The same network, written as guided-diffusion writes it, with settings that leave the network as it is.
GUIDED_DIFFUSION = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "attention_resolutions": "8",
    "num_heads": 2, "num_head_channels": -1, "num_heads_upsample": -1, "use_scale_shift_norm": True, "dropout": 0.0,
    "resblock_updown": True, "use_new_attention_order": False, "learn_sigma": False, "class_cond": False,
    "use_fp16": True, "use_checkpoint": False, "diffusion_steps": 1000, "noise_schedule": "linear", "in_channels": 1,
}  # fmt: skip


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def network() -> UNet:
    return make_network(**TINY)


def outputs(network: UNet) -> Tensor:
    size = network.config.image_size
    x = torch.randn(2, network.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(x, torch.tensor([3.0, 871.0]))


def refusal(path: Path, config: object = None) -> str:
    """The error message for a bad file, which must be one line that names the file."""
    with pytest.raises(InputError) as error:
        load_prior(path, config)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def contiguous(network: UNet) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def rewrite(path: Path, network: UNet, **changes: str | None) -> Path:
    """One of our files with some metadata changed or removed (None)."""
    entries = describe(network) | {"card": "{}"} | changes
    save_file(contiguous(network), path, {name: value for name, value in entries.items() if value is not None})
    return path


# ----------------------------------------------------------------------------------------------- what can be read


def test_float32_file_gives_the_same_network(tmp_path: Path, network: UNet) -> None:
    save_prior(tmp_path / "prior.safetensors", network, card={}, dtype=torch.float32)
    loaded = load_prior(tmp_path / "prior.safetensors")
    assert loaded.config == network.config
    assert torch.equal(outputs(loaded), outputs(network))


def test_float16_file_is_half_as_large_and_gives_nearly_the_same_network(tmp_path: Path, network: UNet) -> None:
    save_prior(tmp_path / "half.safetensors", network, card={})
    save_prior(tmp_path / "single.safetensors", network, card={}, dtype=torch.float32)
    half = load_prior(tmp_path / "half.safetensors")
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "single.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    error = torch.dist(outputs(half), outputs(network)) / outputs(network).norm()
    assert 0 < error < 2e-3


def test_loaded_network_is_in_evaluation_mode_in_the_fast_layout(tmp_path: Path) -> None:
    save_prior(tmp_path / "prior.safetensors", make_network(**TINY, dropout=0.5).train(), card={})
    loaded = load_prior(str(tmp_path / "prior.safetensors"))
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(outputs(loaded), outputs(loaded))
    weight = loaded.input_blocks[1][0].in_layers[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_file_says_format_settings_schedule_and_card(tmp_path: Path, network: UNet) -> None:
    card = {"steps": 7, "validation_loss": {"50": 0.25}}
    save_prior(tmp_path / "prior.safetensors", network, card)
    entries = metadata(tmp_path / "prior.safetensors")
    assert entries["format"] == "ddip-pl-prior-1"
    assert json.loads(entries["card"]) == card
    assert json.loads(entries["schedule"]) == {"steps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}
    assert parse_config(json.loads(entries["config"])) == network.config


def test_saving_makes_the_folder_and_leaves_nothing_else_behind(tmp_path: Path, network: UNet) -> None:
    save_prior(tmp_path / "new" / "folder" / "prior.safetensors", network, card={})
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["prior.safetensors"]


def test_saving_that_fails_keeps_the_earlier_file(
    tmp_path: Path, network: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prior.safetensors"
    save_prior(path, network, card={"steps": 1})

    def disk_full(file: Path, weights: object, metadata: object) -> None:
        file.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("ddip_pl.prior.checkpoint.write_tensors", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_prior(path, network, card={"steps": 2})
    assert json.loads(metadata(path)["card"]) == {"steps": 1}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EMAWeightAveraging, dict[str, Tensor]]:
    """Checkpoint of a short training with averaged weights, the callback, and the weights that were not averaged."""
    folder = tmp_path_factory.mktemp("fit")
    averaging = EMAWeightAveraging(decay=0.9)
    trainer = Trainer(
        accelerator="cpu", max_steps=4, limit_val_batches=0, callbacks=[averaging], default_root_dir=folder,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = DiffusionPrior(UNetConfig(**TINY), learning_rate=1e-2, warmup_steps=1)
    last: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        if trainer.global_step == 4:
            last.update({name: value.clone() for name, value in module.network.state_dict().items()})
            trainer.save_checkpoint(folder / "last.ckpt")

    module.on_train_batch_end = keep  # type: ignore[method-assign]
    trainer.fit(module, EllipsesDataModule(image_size=16, batch_size=2, epoch_size=8))
    return folder / "last.ckpt", averaging, last


def test_lightning_checkpoint_gives_the_averaged_weights(
    fitted: tuple[Path, EMAWeightAveraging, dict[str, Tensor]],
) -> None:
    path, averaging, last = fitted
    loaded = load_prior(path).state_dict()
    assert averaging._average_model is not None
    averaged = averaging._average_model.module.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in averaged.items())
    assert not all(torch.allclose(loaded[name], value) for name, value in last.items())


def test_lightning_checkpoint_carries_the_settings(fitted: tuple[Path, EMAWeightAveraging, dict[str, Tensor]]) -> None:
    assert load_prior(fitted[0]).config == UNetConfig(**TINY)


def test_lightning_checkpoint_of_another_noise_schedule_is_refused(
    tmp_path: Path, fitted: tuple[Path, EMAWeightAveraging, dict[str, Tensor]]
) -> None:
    content = torch.load(fitted[0], weights_only=True)
    content["prior"]["schedule"] = json.dumps(SCHEDULE | {"steps": 4000})
    torch.save(content, tmp_path / "prior.ckpt")
    assert "noise schedule" in refusal(tmp_path / "prior.ckpt")


@pytest.mark.parametrize("config", [TINY, GUIDED_DIFFUSION, UNetConfig(**TINY).__dict__])
def test_plain_state_dict_is_read_with_the_settings_given(
    tmp_path: Path, network: UNet, config: dict[str, object]
) -> None:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert torch.equal(outputs(load_prior(tmp_path / "model.pt", config)), outputs(network))


@pytest.mark.parametrize("config", [GUIDED_DIFFUSION, json.dumps(GUIDED_DIFFUSION)])
def test_state_dict_beside_its_settings_needs_no_others(tmp_path: Path, network: UNet, config: object) -> None:
    torch.save({"config": config, "state_dict": network.state_dict()}, tmp_path / "model.pt")
    assert torch.equal(outputs(load_prior(tmp_path / "model.pt")), outputs(network))


@pytest.mark.parametrize("new_zipfile", [True, False])
def test_both_file_formats_of_torch_are_read(tmp_path: Path, network: UNet, new_zipfile: bool) -> None:
    torch.save(network.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=new_zipfile)
    assert torch.equal(outputs(load_prior(tmp_path / "model.pt", TINY)), outputs(network))


def test_list_of_averaged_parameters_is_read_in_order_of_registration(tmp_path: Path, network: UNet) -> None:
    shadow = [parameter.detach().clone() for parameter in network.parameters()]
    torch.save({"decay": 0.999, "num_updates": 3, "shadow_params": shadow}, tmp_path / "ema.pth")
    assert torch.equal(outputs(load_prior(tmp_path / "ema.pth", TINY)), outputs(network))


def test_settings_given_win_over_those_of_the_file(tmp_path: Path) -> None:
    legacy = make_network(**TINY)
    save_prior(tmp_path / "prior.safetensors", legacy, card={}, dtype=torch.float32)
    loaded = load_prior(tmp_path / "prior.safetensors", TINY | {"use_new_attention_order": True})
    assert loaded.config.use_new_attention_order
    assert not torch.equal(outputs(loaded), outputs(legacy))


# ----------------------------------------------------------------------------------------------------- what cannot


@pytest.mark.parametrize("name", ["prior.safetensors", "prior.pt", "prior.ckpt"])
def test_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    assert "no such file" in refusal(tmp_path / name)


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"These are not weights.\nNor are these.\n", b"\x89PNG\r\n\x1a\n\0\0\0\r"]
)
@pytest.mark.parametrize("name", ["prior.safetensors", "prior.pt", "prior.ckpt"])
def test_empty_and_foreign_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "truncated" in refusal(tmp_path / name, TINY)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["prior.safetensors", "prior.pt", "legacy.pt", "prior.ckpt"])
def test_truncated_files_are_refused(
    tmp_path: Path,
    network: UNet,
    fitted: tuple[Path, EMAWeightAveraging, dict[str, Tensor]],
    name: str,
    share: float,
) -> None:
    path = tmp_path / name
    if name == "prior.safetensors":
        save_prior(path, network, card={})
    elif name == "prior.ckpt":
        path.write_bytes(fitted[0].read_bytes())
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=name == "prior.pt")
    load_prior(path, TINY)  # valid if complete
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "truncated" in refusal(path, TINY)


@settings(max_examples=60)
@given(suffix=st.sampled_from([".safetensors", ".pt", ".ckpt"]), content=st.binary(max_size=60))
def test_no_bytes_whatever_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(b"\x80\x02" + content)  # the start of a pickle
    refusal(path, TINY)


def test_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, network: UNet) -> None:
    created = tmp_path / "created"
    torch.save(network.state_dict() | {"payload": Payload(created)}, tmp_path / "evil.pt")
    assert "not a file of plain weights" in refusal(tmp_path / "evil.pt", TINY)
    assert not created.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the file would run code
    assert created.exists()


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        7,
        {},
        {"state_dict": [torch.zeros(3)]},
        {"state_dict": {3: torch.zeros(3)}},
        {"shadow_params": torch.zeros(3)},
        {"shadow_params": [torch.zeros(3)]},
        {"shadow_params": []},
        {"prior": None, "state_dict": {}},
        {"epoch": 3, "state_dict": {"classifier.weight": torch.zeros(3, 3)}},
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert re.search("holds a|not a checkpoint|do not fit|these settings need", refusal(tmp_path / "other.pt", TINY))


def test_weights_that_are_no_tensors_are_refused(tmp_path: Path, network: UNet) -> None:
    torch.save(network.state_dict() | {"out.2.bias": "zero"}, tmp_path / "prior.pt")
    assert "out.2.bias" in refusal(tmp_path / "prior.pt", TINY)


@pytest.mark.parametrize("name", ["plain.pt", "ema.pt"])
def test_file_without_settings_asks_for_them(tmp_path: Path, network: UNet, name: str) -> None:
    torch.save(
        {"plain.pt": network.state_dict(), "ema.pt": {"shadow_params": list(network.parameters())}}[name],
        tmp_path / name,
    )
    assert "no network settings; give them as config" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TINY | {"depth": 3}, "unknown network settings ['depth']"),
        ({"num_channels": 32}, "lack image_size"),
        (TINY | {"image_size": 17, "channel_mult": "1,1"}, "image_size is 17"),
        (TINY | {"num_channels": 40}, "num_channels is 40"),
        (TINY | {"num_channels": "many"}, "settings"),
        (TINY | {"channel_mult": "1;1"}, "settings"),
        (TINY | {"channel_mult": None}, "settings"),
        (TINY | {"num_heads": 5}, "heads of 6 channels"),
        (TINY | {"num_heads": 0}, "settings"),
        (TINY | {"num_head_channels": 64}, "settings"),
        (TINY | {"channel_mult": ()}, "settings"),
        (TINY | {"class_cond": True}, "class-conditional"),
        (TINY | {"noise_schedule": "cosine"}, "noise schedule is cosine"),
        (TINY | {"diffusion_steps": 4000}, "4000 steps"),
        (["image_size", 16], "settings"),
        ("image_size: 16", "settings"),
        ({}, "lack image_size"),
    ],
)
def test_unusable_settings_are_refused(tmp_path: Path, network: UNet, config: object, reason: str) -> None:
    torch.save(network.state_dict(), tmp_path / "prior.pt")
    assert reason in refusal(tmp_path / "prior.pt", config)


@pytest.mark.parametrize(
    "change",
    [{"channel_mult": (1, 1)}, {"num_channels": 64}, {"in_channels": 2}, {"use_scale_shift_norm": False}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("form", ["safetensors", "state_dict", "list"])
def test_settings_of_another_network_are_refused(
    tmp_path: Path, network: UNet, form: str, change: dict[str, object]
) -> None:
    if form == "safetensors":
        path = rewrite(
            tmp_path / "prior.safetensors", make_network(**TINY | change), config=describe(network)["config"]
        )
        message = refusal(path)
    else:
        contents = network.state_dict() if form == "state_dict" else {"shadow_params": list(network.parameters())}
        torch.save(contents, tmp_path / "prior.pt")
        message = refusal(tmp_path / "prior.pt", TINY | change)
    assert re.search(r"\d+ (weights do not fit|parameters, these settings need \d+)", message)


def test_weight_of_another_shape_is_named(tmp_path: Path, network: UNet) -> None:
    weights = contiguous(network) | {"time_embed.0.weight": torch.zeros(128, 33)}
    save_file(weights, tmp_path / "prior.safetensors", describe(network))
    line = refusal(tmp_path / "prior.safetensors")
    assert "1 weights do not fit the network's settings (first: time_embed.0.weight)" in line


def test_safetensors_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"lora.A": torch.zeros(4, 4)}, tmp_path / "bare.safetensors")
    save_file({"lora.A": torch.zeros(4, 4)}, tmp_path / "lora.safetensors", {"format": "pt"})
    assert "not a ddip-pl prior (format None)" in refusal(tmp_path / "bare.safetensors")
    assert "not a ddip-pl prior (format 'pt')" in refusal(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "ddip-pl-prior-2"}, "ddip-pl-prior-2"),
        ({"schedule": json.dumps(SCHEDULE | {"beta_end": 1e-2})}, "noise schedule"),
        ({"schedule": "linear"}, "noise schedule"),
        ({"schedule": None}, "schedule"),
        ({"config": None}, "config"),
        ({"config": "{"}, "settings"),
        ({"config": "[]"}, "settings"),
    ],
)
def test_safetensors_with_wrong_metadata_is_refused(
    tmp_path: Path, network: UNet, changes: dict[str, str | None], reason: str
) -> None:
    load_prior(rewrite(tmp_path / "prior.safetensors", network))  # valid if unchanged
    assert reason in refusal(rewrite(tmp_path / "prior.safetensors", network, **changes))
