"""Low-rank adaptation (Hu et al. 2022) of the network's blocks, through PEFT."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from ddip_pl.errors import InputError

BLOCKS = ("input_blocks", "middle_block", "output_blocks")


class LoRA:
    """Trainable low-rank weights beside every convolution and linear layer of the network's blocks.

    They are attached to the network in place and can be taken off again without a trace.

    Args:
        network: the U-Net.
        rank: of each weight's update.
        bias: train the layers' biases too, as the published code does.
        dropout: probability of dropping an input of the low-rank path while training.
    """

    def __init__(self, network: nn.Module, rank: int = 4, bias: bool = True, dropout: float = 0.0):
        if rank < 1:
            raise InputError(f"LoRA rank is {rank}; give at least 1")
        self._trainable = {name: p.requires_grad for name, p in network.named_parameters()}
        targets = [
            name for name, layer in network.named_modules()
            if name.startswith(BLOCKS) and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        ]  # fmt: skip
        self._biases = {name: bias.detach().clone() for name, bias in network.named_parameters() if "bias" in name}
        config = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=dropout, bias="lora_only" if bias else "none", target_modules=targets
        )
        self.network = network
        self._tuner = LoraModel(network, config, "default")
        self._layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
        for layer in self._layers:
            layer.lora_dropout.train()

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the low-rank factors and, with `bias`, the biases."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.network.named_parameters() if p.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        parameters = dict(self.network.named_parameters())
        for name, value in state.items():
            parameters[name].data.copy_(value)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the updates are part of the weights and a forward pass costs what it costs without LoRA."""
        weights = [layer.get_base_layer().weight.data for layer in self._layers]
        self._tuner.merge_adapter(safe_merge=True)  # into a copy; adding and subtracting would leave rounding behind
        try:
            yield
        finally:
            self._tuner.unmerge_adapter()
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.get_base_layer().weight.data = weight

    def remove(self) -> None:
        """Give the network back as it was, to the last bit."""
        self._tuner.unload()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._trainable[name])
            parameter.grad = None
            if name in self._biases:
                parameter.data.copy_(self._biases[name])
