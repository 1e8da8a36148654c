"""Low-rank adaptation (Hu et al. 2022) of the network's blocks, with PEFT's layers, weights and files."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from ddip_pl.adaptation.weights import AdaptedWeights
from ddip_pl.errors import InputError, reason
from ddip_pl.prior.tensors import check_finite, read_tensors, write_tensors

BLOCKS = ("input_blocks", "middle_block", "output_blocks")
PEFT_PREFIX = "base_model.model."  # of the names in a file
FACTOR = ".lora_A.default.weight"  # suffix of each layer's first factor

Weights = dict[str, Tensor]


class LoRA:
    """Trainable low-rank weights for every convolution and linear layer in the network's blocks.

    PEFT inserts and removes them; the network's own weights never change. A single set of weights acts through
    `merged`: adding the update `B A` to the weight of the layer's convolution trains a quarter faster than PEFT's two
    extra convolutions per layer, and costs nothing in sampling. With `slicewise`, every slice of a batch has its own
    set, and each layer adds `B_i (A_i x_i) + c_i` to its output.

    Args:
        network: the U-Net.
        rank: of each weight's update.
        bias: also train an update `c` of the layers' biases; the published code trains the biases.
        dropout: probability of dropping an entry of an update in training (DropConnect); only in `merged`.
        slicewise: call the network with the weights from `split`.
    """

    def __init__(
        self, network: nn.Module, rank: int = 4, bias: bool = True, dropout: float = 0.0, slicewise: bool = False
    ):
        self.network, self.dropout = network, dropout
        self._required_grad = {name: p.requires_grad for name, p in network.named_parameters()}
        targets = [
            name for name, layer in network.named_modules()
            if name.startswith(BLOCKS) and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        ]  # fmt: skip
        self._tuner = LoraModel(network, peft_config(rank, bias, targets), "default")
        self._tuner.disable_adapter_layers()  # forward passes use the plain layers, with the given weights
        self._layers: dict[str, Any] = {
            name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)
        }
        for layer in self._layers.values():
            layer.reset_lora_parameters("default", "gaussian")  # LoraConfig does not allow this together with biases
            if slicewise:
                layer.register_forward_hook(add_low_rank)
        self._trained = {name: p for name, p in network.named_parameters() if "lora_" in name}
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: the low-rank factors and, with `bias`, the updates of the biases."""
        return list(self._trained.values())

    def merged(self, training: bool = False) -> Weights:
        """Weights `W + B A` and biases `b + c` by name; differentiable in `A`, `B` and `c`."""
        merged = {}
        for name, layer in self._layers.items():
            base, bias = layer.get_base_layer(), layer.lora_B["default"].bias
            update = F.dropout(layer.get_delta_weight("default"), self.dropout, training)
            merged[f"{name}.base_layer.weight"] = base.weight + update
            if bias is not None:
                merged[f"{name}.base_layer.bias"] = base.bias + bias
        return merged

    def flat(self) -> Tensor:
        """A copy of the trained parameters as one vector `(values,)`."""
        return torch.cat([p.detach().flatten() for p in self._trained.values()])

    def split(self, vectors: Tensor) -> Weights:
        """Vectors like `flat()`, one per slice, `(slices, values)`, as weights `(slices, ...)` by name."""
        parts = vectors.split([p.numel() for p in self._trained.values()], dim=1)
        return {name: part.unflatten(1, p.shape) for (name, p), part in zip(self._trained.items(), parts, strict=True)}

    def state_dict(self) -> Weights:
        """A copy of the trained parameters, by name."""
        return {name: p.detach().clone() for name, p in self._trained.items()}

    def load_state_dict(self, state: Weights) -> None:
        """Set the trained parameters.

        Raises:
            InputError: the weights are for another network, or have another rank.
        """
        expected = {name: tuple(p.shape) for name, p in self._trained.items()}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if given != expected:
            name = min(name for name, _ in given.items() ^ expected.items())
            raise InputError(
                f"LoRA weights do not fit: {name} is {given.get(name, 'missing')}, expected "
                f"{expected.get(name, 'none')}; give weights with the same prior, rank and bias"
            )
        for name, value in state.items():
            self._trained[name].data.copy_(value)

    def update_norm(self, weights: Weights) -> float:
        """`sqrt(sum || B A ||_F^2)` over all layers, the distance of the weights from the prior's.

        If the weights have a leading axis of slices, this is the root mean square over slices.
        """
        squares = []
        for name, layer in self._layers.items():
            own_a, own_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            a = weights[f"{name}.lora_A.default.weight"].reshape(-1, *own_a.shape).flatten(2)
            b = weights[f"{name}.lora_B.default.weight"].reshape(-1, *own_b.shape).flatten(2)
            squares.append(((a @ a.mT) * (b.mT @ b)).sum() / len(a))  # || B A ||^2 = tr(A A^T B^T B)
        return torch.stack(squares).sum().sqrt().item()

    def remove(self) -> None:
        """Restore the network exactly."""
        self._tuner.unload()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._required_grad[name])


def add_low_rank(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook of a PEFT layer: `W x_i + b` becomes `W x_i + b + B_i (A_i x_i) + c_i`, for each slice i.

    The convolution with `A_i` is done as a batched product and a sum of shifted images, which is several times faster
    than a grouped convolution with so few channels.

    Args:
        layer: its factors have a leading axis of slices: `A (slices, rank, in, *kernel)`, `B (slices, out, rank, ...)`
            and, with biases, `c (slices, out)`.
        inputs: `x (slices, in, ...)`.
        output: `(slices, out, ...)`.
    """
    x, base = inputs[0], layer.get_base_layer()
    a, b, c = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_B["default"].bias
    kernel = a.shape[3:]
    taps = a.flip(tuple(range(3, a.ndim))).flatten(3).transpose(2, 3) if kernel else a
    u = taps.reshape(len(a), -1, a.shape[2]) @ x.reshape(*x.shape[:2], -1)
    if kernel.numel() > 1:
        size = tuple(n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], base.padding, kernel, strict=True))
        padding = tuple(k - 1 - p for p, k in zip(base.padding, kernel, strict=True))
        u = F.fold(u, size, tuple(kernel), padding=padding)[..., :: base.stride[0], :: base.stride[1]].flatten(2)
    update = u.transpose(1, 2) @ b.flatten(2).transpose(1, 2)  # (slices, positions, out): the output's memory layout
    if c is not None:
        update = update + c[:, None]
    return output + update.transpose(1, 2).reshape(output.shape)


def peft_config(rank: int, bias: bool, targets: list[str]) -> LoraConfig:
    """PEFT's settings for our weights."""
    return LoraConfig(r=rank, lora_alpha=rank, lora_bias=bias, target_modules=targets)


@dataclass(frozen=True, eq=False)
class LoraWeights(AdaptedWeights):
    """LoRA weights for a volume, or for each of its slices.

    Attributes:
        tensors: by name; if every slice has its own weights, the first axis is slices.
        rank: of each weight's update.
        bias: whether biases were trained too.
        slices: number of slices with their own weights; 0 if there is one set for the volume.
        trained_on: hash of the prior's file; empty if unknown.
    """

    rank: int = 4
    bias: bool = True
    slices: int = 0
    trained_on: str = ""

    def of_slice(self, i: int) -> Weights:
        """The weights of one slice."""
        return {name: weight[i] for name, weight in self.tensors.items()} if self.slices else dict(self.tensors)

    def save(self, folder: Path, prior: str = "", digest: str = "") -> None:
        """Write `lora/` into a folder, in PEFT's format; if every slice has its own weights, `lora/0000` and so on.

        The prior is PEFT's `base_model_name_or_path`; the hash of its file is in the metadata of the weights.
        """
        parts = [f"{i:04d}" for i in range(self.slices)] or [""]
        for i, part in enumerate(parts):
            save_one(self.of_slice(i), self.rank, self.bias, folder / "lora" / part, prior, digest)

    @staticmethod
    def load(folder: Path) -> "LoraWeights":
        """Read a folder `lora` written by `save`.

        Raises:
            InputError: the folder has no such weights, they cannot be read, or their shapes differ between slices.
        """
        if (folder / "adapter_config.json").exists():
            return load_one(folder)
        parts = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
        if not parts:
            raise InputError(f"LoRA weights {folder}: no adapter_config.json in it; give the folder `lora` of a result")
        sets = [load_one(path) for path in parts]
        shapes = [{name: weight.shape for name, weight in one.tensors.items()} for one in sets]
        if any(each != shapes[0] for each in shapes):
            raise InputError(
                f"LoRA weights {folder}: the slices have weights of different shapes; give the weights of one run"
            )
        stacked = {name: torch.stack([one.tensors[name] for one in sets]) for name in shapes[0]}
        return replace(sets[0], tensors=stacked, slices=len(sets))


def save_one(weights: Weights, rank: int, bias: bool, folder: Path, prior: str, digest: str) -> None:
    """Write one set of weights in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""
    targets = sorted(name.removesuffix(FACTOR) for name in weights if name.endswith(FACTOR))
    config = peft_config(rank, bias, targets)
    config.inference_mode, config.base_model_name_or_path = True, prior or None
    config.save_pretrained(str(folder))
    stored = {f"{PEFT_PREFIX}{name.replace('.default.', '.')}": weight for name, weight in weights.items()}
    write_tensors(folder / "adapter_model.safetensors", stored, {"format": "pt", "prior_digest": digest})


def load_one(folder: Path) -> LoraWeights:
    """Read one set of weights in PEFT's format.

    Raises:
        InputError: the files cannot be read, are damaged, were not written by ddip-pl, or a weight is NaN or infinite.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        stored, metadata = read_tensors(folder / "adapter_model.safetensors")
        check_finite(stored)
    except InputError as error:
        raise InputError(f"LoRA weights {folder}: {error}") from error
    except Exception as error:  # deeply nested JSON can raise more than ValueError
        raise InputError(f"LoRA weights {folder}: cannot be read ({reason(error)})") from error
    config = config if isinstance(config, dict) else {}
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or config.get("lora_alpha") != rank:
        raise InputError(f"LoRA weights {folder}: not written by ddip-pl; give the folder `lora` of a result")
    weights = {}
    for name, weight in stored.items():
        layer, _, kind = name.removeprefix(PEFT_PREFIX).rpartition(".")
        weights[f"{layer}.default.{kind}"] = weight
    return LoraWeights(weights, rank, bool(config.get("lora_bias")), trained_on=metadata.get("prior_digest", ""))
