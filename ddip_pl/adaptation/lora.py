"""Low-rank adaptation (Hu et al. 2022) of the network's blocks, with PEFT's layers and weights."""

from typing import Any

import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from ddip_pl.errors import InputError

BLOCKS = ("input_blocks", "middle_block", "output_blocks")


class LoRA:
    """Trainable low-rank weights beside every convolution and linear layer of the network's blocks.

    PEFT puts them in place and takes them off again. They act through `merged`: adding the update `B A` to a weight
    before its one convolution is a quarter faster in training than PEFT's two more convolutions a layer, costs nothing
    in sampling, and leaves the network's own weights untouched.

    Args:
        network: the U-Net.
        rank: of each weight's update.
        bias: train the layers' biases too, as the published code does.
        dropout: probability of leaving out an entry of an update while training (DropConnect).
    """

    def __init__(self, network: nn.Module, rank: int = 4, bias: bool = True, dropout: float = 0.0):
        if rank < 1:
            raise InputError(f"LoRA rank is {rank}; give at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"LoRA dropout is {dropout}; give a probability below 1")
        self.network, self.dropout = network, dropout
        self._before = {name: (p.requires_grad, p.detach().clone() if p.ndim == 1 else None)
                        for name, p in network.named_parameters()}  # fmt: skip
        targets = [
            name for name, layer in network.named_modules()
            if name.startswith(BLOCKS) and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        ]  # fmt: skip
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
        self._tuner = LoraModel(network, config, "default")
        self._tuner.disable_adapter_layers()  # a forward pass is that of the plain layers, with the weights it is given
        self._layers: dict[str, Any] = {
            name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)
        }
        kinds = ("lora_", "base_layer.bias") if bias else ("lora_",)
        self._trained = {n: p for n, p in network.named_parameters() if any(kind in n for kind in kinds)}
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the low-rank factors and, with `bias`, the biases."""
        return list(self._trained.values())

    def merged(self, training: bool = False) -> dict[str, Tensor]:
        """Weights with their updates, `W + B A`, by name; differentiable in the factors."""
        merged = {}
        for name, layer in self._layers.items():
            update = F.dropout(layer.get_delta_weight("default"), self.dropout, training)
            merged[f"{name}.base_layer.weight"] = layer.get_base_layer().weight + update
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of what is trained, by name."""
        return {name: p.detach().clone() for name, p in self._trained.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set what is trained."""
        for name, value in state.items():
            self._trained[name].data.copy_(value)

    def remove(self) -> None:
        """Give the network back as it was, to the last bit."""
        self._tuner.unload()
        for name, parameter in self.network.named_parameters():
            requires_grad, bias = self._before[name]
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
            if bias is not None:
                parameter.data.copy_(bias)
