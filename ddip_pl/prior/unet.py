"""ADM U-Net (Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021).

Parameters have the names and the order of OpenAI's guided-diffusion, so that published weights load unchanged, both
by name and as a list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddip_pl.errors import InputError
from ddip_pl.settings import HalfOpenUnitInterval, Pixels, Range, checked

Channels = Annotated[int, Range(1, 4096)]


@checked
@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Settings of the network, named as in guided-diffusion.

    Args:
        image_size: height and width that the prior is trained for; images may have any other size.
        in_channels: 1 for real images, 2 for complex ones (real, imaginary).
        out_channels: channels of the output; by default `in_channels`, or twice as many with `learn_sigma`.
        num_channels: channels at full resolution.
        channel_mult: multiples of `num_channels`, one for each resolution level.
        num_res_blocks: residual blocks per level.
        attention_resolutions: image sizes in pixels, for an input of `image_size`, of the levels with attention.
        num_heads: attention heads, if `num_head_channels` is -1.
        num_head_channels: channels per attention head, or -1 to use `num_heads`.
        dropout: probability of dropping a feature inside a residual block in training.
        resblock_updown: change resolution in residual blocks instead of by strided convolution / nearest neighbour.
        use_scale_shift_norm: let the time embedding scale and shift the normalised features instead of being added.
        use_new_attention_order: split queries, keys and values before the heads instead of after.
        learn_sigma: the second half of the output channels is a variance, only the first half is noise.

    Raises:
        InputError: a setting is out of range, or `image_size` does not fit the number of levels.
    """

    image_size: Pixels
    in_channels: Channels = 1
    out_channels: Channels | None = None
    num_channels: Channels = 32
    channel_mult: Sequence[Annotated[int, Range(1, 64)]] = (1, 1, 2, 4)
    num_res_blocks: Annotated[int, Range(1, 64)] = 1
    attention_resolutions: Sequence[Pixels] = (16,)
    num_heads: Channels = 4
    num_head_channels: Literal[-1] | Channels = -1
    dropout: HalfOpenUnitInterval = 0.0
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    use_new_attention_order: bool = False
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        if not self.channel_mult:
            raise InputError("channel_mult is empty; give a number for each resolution level")
        levels = len(self.channel_mult)
        if self.image_size % 2 ** (levels - 1):
            raise InputError(f"image_size is {self.image_size}; {levels} levels need a multiple of {2 ** (levels - 1)}")
        if self.num_channels % 32:
            raise InputError(f"num_channels is {self.num_channels}; group normalisation needs a multiple of 32")


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of timesteps `(batch,)`, shape `(batch, channels)` (Vaswani et al. 2017)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    phase = t[:, None].float() * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Downsample(nn.Module):
    """Halve the resolution, by a strided convolution (`op`) or by averaging."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by nearest-neighbour interpolation, with or without a convolution after it."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding; `resample` changes the resolution inside it."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, config: UNetConfig,
        resample: type[Downsample] | type[Upsample] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.scale_shift = config.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.h_upd = resample(channels, learned=False) if resample else nn.Identity()
        self.x_upd = resample(channels, learned=False) if resample else nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels * (1 + self.scale_shift)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers[2](self.h_upd(self.in_layers[:2](x)))
        emb = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(self.x_upd(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, at any image size, added to its input.

    At sizes other than the training size, no other way of attention works better (docs/sizes.md).
    """

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.heads = config.num_heads if config.num_head_channels == -1 else channels // config.num_head_channels
        size = channels // self.heads if config.num_head_channels == -1 else config.num_head_channels
        if size * self.heads != channels:
            raise InputError(f"attention over {channels} channels cannot be split into heads of {size} channels")
        # Order of the channels: q, k and v for each head or, in the new order, the heads for each of q, k and v.
        self.order = "(qkv heads channels)" if config.use_new_attention_order else "(heads qkv channels)"
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = rearrange(x, "batch channels height width -> batch channels (height width)")
        pattern = f"batch {self.order} pixels -> qkv batch heads pixels channels"
        # With a pixel's channels contiguous in memory, attention never stores the matrix of all pixel pairs.
        q, k, v = rearrange(self.qkv(self.norm(flat)), pattern, qkv=3, heads=self.heads).contiguous()
        h = F.scaled_dot_product_attention(q, k, v)
        h = rearrange(h, "batch heads pixels channels -> batch (heads channels) pixels")
        return (flat + self.proj_out(h)).reshape(x.shape)


class Block(nn.Sequential):
    """The layers of a level in sequence; residual blocks also get the time embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """The ADM U-Net: `network(x, t) -> eps`.

    Args:
        config: see `UNetConfig`.

    Takes `x (batch, in_channels, height, width)` float and timesteps `t (batch,)`, 0 .. 999. Returns
    `(batch, out_channels, height, width)`: the predicted noise and, with `learn_sigma`, the variance.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.multiple = 2 ** (len(config.channel_mult) - 1)
        width = config.num_channels
        embedding = 4 * width
        out_channels = config.out_channels or config.in_channels * (1 + config.learn_sigma)
        attention_strides = {config.image_size // resolution for resolution in config.attention_resolutions}

        def change_resolution(channels: int, resample: type[Downsample] | type[Upsample]) -> nn.Module:
            if config.resblock_updown:
                return ResBlock(channels, channels, embedding, config, resample)
            return resample(channels, learned=True)

        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        channels = config.channel_mult[0] * width
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(config.in_channels, channels, 3, padding=1))])
        skips, stride = [channels], 1
        for level, multiple in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, multiple * width, embedding, config)]
                channels = multiple * width
                if stride in attention_strides:
                    layers.append(AttentionBlock(channels, config))
                self.input_blocks.append(Block(*layers))
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Block(change_resolution(channels, Downsample)))
                skips.append(channels)
                stride *= 2
        self.middle_block = Block(
            ResBlock(channels, channels, embedding, config),
            AttentionBlock(channels, config),
            ResBlock(channels, channels, embedding, config),
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers = [ResBlock(channels + skips.pop(), multiple * width, embedding, config)]
                channels = multiple * width
                if stride in attention_strides:
                    layers.append(AttentionBlock(channels, config))
                if level and i == config.num_res_blocks:
                    layers.append(change_resolution(channels, Upsample))
                    stride //= 2
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), zero(nn.Conv2d(channels, out_channels, 3, padding=1))
        )
        # Convolutions are a third faster in this layout, both on CPU and on tensor cores.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embed(timestep_embedding(t, self.config.num_channels).to(x.dtype))
        h = mirrored(x, self.multiple).contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)[..., : x.shape[2], : x.shape[3]]


def mirrored(x: Tensor, multiple: int) -> Tensor:
    """Pad images by reflection so that height and width are multiples of `multiple`."""
    for dim in (2, 3):
        length = x.shape[dim]
        if length % multiple:
            index = torch.arange(length + -length % multiple, device=x.device) % (2 * length)
            x = x.index_select(dim, torch.minimum(index, 2 * length - 1 - index))
    return x


def zero(module: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero, so that its residual block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
