"""UNet and decoder with what lies between their convolutions fused: the same modules and weights, another forward.

Four things are saved. A convolution's bias is not added to its result but where that is read next. Group norm and SiLU read twice
and write once. The sum at the end of a residual layer takes the moments of the next norm along. Tokens of a transformer are
the picture's own memory, so nothing is transposed. `tests/bench/traffic.py` counts what is left.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from musetalk_agent.engines.musetalk import fused_operations as operations
from musetalk_agent.engines.musetalk.network import FoldedUNet, Network, PatchDecoder


class BiasedTensor(NamedTuple):
    """`x` `[B, C, h, w]` plus a bias that is not added yet, and the moments of that sum where they are known."""

    x: Tensor
    bias: Tensor | None = None
    moments: Tensor | None = None

    def normalized(self, norm: Any, *, silu: bool) -> Tensor:
        """Group norm of it, with SiLU behind it or not."""
        found = self.moments
        if found is None:
            found = operations.moments(self.x, self.bias, norm.num_groups)
        made: Tensor = operations.normalize(self.x, self.bias, found, norm.weight, norm.bias, norm.eps, silu)
        return made


class FusedResnet(nn.Module):
    """One of diffusers' `ResnetBlock2D` without time.

    Args:
        given: the bias that the pictures it will be given have not been added, where they have one; its value counts here.
    """

    added: Tensor

    def __init__(self, block: Any, given: Tensor | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.shortcut = block.conv_shortcut
        added = block.conv2.bias.float()
        if self.shortcut is not None:
            added = added + self.shortcut.bias.float()
        if given is not None:
            through = given.float()
            added = added + (through if self.shortcut is None else self.shortcut.weight.float().flatten(1) @ through)
        self.register_buffer("added", added.to(block.conv2.bias.dtype), persistent=False)

    def forward(self, given: BiasedTensor) -> BiasedTensor:
        """The layer's picture, without a bias left to add, and with moments for a norm of as many groups."""
        x = functional.conv2d(given.normalized(self.norm1, silu=True), self.conv1.weight, padding=1)
        middle = BiasedTensor(x, self.conv1.bias).normalized(self.norm2, silu=True)
        x = functional.conv2d(middle, self.conv2.weight, padding=1)
        straight = given.x if self.shortcut is None else functional.conv2d(given.x, self.shortcut.weight)
        made, found = operations.add(x, straight, self.added, self.norm2.num_groups)
        return BiasedTensor(made, None, found)


class FusedTransformer(nn.Module):
    """One of diffusers' `Transformer2DModel` as Stable Diffusion 1 has it."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer: Any = transformer

    def forward(self, given: BiasedTensor, audio: Tensor) -> BiasedTensor:
        """`given` without a bias to add, `audio` `[B, 50, 384]`; as `FusedResnet.forward`."""
        inner = self.transformer
        tokens = _projected(inner.proj_in, _tokens(given, inner.norm))
        for block in inner.transformer_blocks:
            normed = block.norm1(tokens)
            tokens, normed = _added(tokens, _attended(block.attn1, normed, normed), block.norm2)
            tokens, normed = _added(tokens, _attended(block.attn2, normed, audio), block.norm3)
            tokens = tokens + block.ff.net[2](operations.geglu(block.ff.net[0].proj(normed)))
        return _sum(_projected(inner.proj_out, tokens), given, inner.norm)


class FusedAttention(nn.Module):
    """The attention in the middle of the decoder: one head over all places of the picture."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention: Any = attention

    def forward(self, given: BiasedTensor) -> BiasedTensor:
        """`given` without a bias to add; as `FusedResnet.forward`."""
        tokens = _tokens(given, self.attention.group_norm)
        return _sum(_attended(self.attention, tokens, tokens), given, self.attention.group_norm)


def _tokens(given: BiasedTensor, norm: Any) -> Tensor:
    """`[B, C, h, w]`, normalized, as `[B, h·w, C]`: the same memory where channels are last."""
    return given.normalized(norm, silu=False).permute(0, 2, 3, 1).flatten(1, 2)


def _sum(tokens: Tensor, given: BiasedTensor, norm: Any) -> BiasedTensor:
    x = tokens.view(len(tokens), *given.x.shape[2:], -1).permute(0, 3, 1, 2)
    made, found = operations.add(x, given.x, None, norm.num_groups)
    return BiasedTensor(made, None, found)


def _added(tokens: Tensor, more: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """The sum, and its layer norm."""
    summed, normed = operations.add_norm(tokens, more, norm.weight, norm.bias, norm.eps)
    return summed, normed


def _projected(convolution: Any, tokens: Tensor) -> Tensor:
    """A 1×1 convolution over tokens, as the matrix product that it is."""
    return functional.linear(tokens, convolution.weight.flatten(1), convolution.bias)


def _attended(attention: Any, asking: Tensor, context: Tensor) -> Tensor:
    def split(flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], attention.heads, -1).transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(
        split(attention.to_q(asking)), split(attention.to_k(context)), split(attention.to_v(context))
    )
    out: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
    return out


class _Layers(nn.Module):
    """A block's residual layers, each with the transformer behind it where there is one, and its sampler."""

    def __init__(self, block: Any, sampler: Any, given: Tensor | None = None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            FusedResnet(resnet, None if at else given) for at, resnet in enumerate(block.resnets)
        )
        self.transformers = nn.ModuleList(FusedTransformer(one) for one in getattr(block, "attentions", None) or ())
        self.sampler = sampler[0] if sampler else None

    def pairs(self) -> list[tuple[Any, Any]]:
        """Each residual layer with its transformer or None."""
        return list(zip_longest(self.resnets, self.transformers))


class FusedUNet(nn.Module):
    """`FoldedUNet` over the same modules."""

    def __init__(self, folded: FoldedUNet) -> None:
        super().__init__()
        unet = folded.unet
        self.conv_in, self.norm_out, self.conv_out = unet.conv_in, unet.conv_norm_out, unet.conv_out
        self.down = nn.ModuleList(_Layers(block, block.downsamplers) for block in unet.down_blocks)
        self.up = nn.ModuleList(_Layers(block, block.upsamplers) for block in unet.up_blocks)
        self.first = FusedResnet(unet.mid_block.resnets[0])
        self.middle = nn.ModuleList(
            nn.ModuleList((FusedTransformer(attention), FusedResnet(resnet)))
            for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True)
        )

    def forward(self, latents: Tensor, audio: Tensor) -> Tensor:
        """As `FoldedUNet.forward`."""
        at = BiasedTensor(self.conv_in(latents))
        skips = [at.x]
        block: Any
        for block in self.down:
            for resnet, transformer in block.pairs():
                at = resnet(at)
                at = at if transformer is None else transformer(at, audio)
                skips.append(at.x)
            if block.sampler is not None:
                at = BiasedTensor(block.sampler(at.x))
                skips.append(at.x)
        at = self.first(at)
        pair: Any
        for pair in self.middle:
            at = pair[1](pair[0](at, audio))
        for block in self.up:
            for resnet, transformer in block.pairs():
                at = resnet(BiasedTensor(torch.cat([at.x, skips.pop()], 1)))
                at = at if transformer is None else transformer(at, audio)
            if block.sampler is not None:
                at = BiasedTensor(block.sampler(at.x))
        made: Tensor = self.conv_out(at.normalized(self.norm_out, silu=True))
        return made


class FusedDecoder(nn.Module):
    """`PatchDecoder` over the same modules."""

    def __init__(self, plain: PatchDecoder) -> None:
        super().__init__()
        decoder = plain.decoder
        self.post_quant_conv, self.scale, self.first_row = plain.post_quant_conv, plain.scale, plain.first_row
        self.conv_in, self.norm_out, self.conv_out = decoder.conv_in, decoder.conv_norm_out, decoder.conv_out
        first, last = decoder.mid_block.resnets
        self.first, self.last = FusedResnet(first, self.conv_in.bias), FusedResnet(last)
        self.attention = FusedAttention(decoder.mid_block.attentions[0])
        self.up = nn.ModuleList()
        given = None
        for block in decoder.up_blocks:
            self.up.append(_Layers(block, block.upsamplers, given))
            given = block.upsamplers[0].bias if block.upsamplers else None

    def forward(self, latents: Tensor) -> Tensor:
        """As `PatchDecoder.forward`."""
        x = functional.conv2d(self.post_quant_conv(self.scale * latents), self.conv_in.weight, padding=1)
        at = self.last(self.attention(self.first(BiasedTensor(x, self.conv_in.bias))))
        if self.first_row:
            at = BiasedTensor(at.x[:, :, self.first_row :].contiguous(memory_format=torch.channels_last))
        block: Any
        for block in self.up:
            for resnet in block.resnets:
                at = resnet(at)
            if block.sampler is not None:
                x = functional.conv_transpose2d(at.x, block.sampler.weight, stride=2, padding=1)
                at = BiasedTensor(x, block.sampler.bias)
        made: Tensor = self.conv_out(at.normalized(self.norm_out, silu=True))
        return made


def fused(network: Network) -> Network:
    """The same network with fused forwards; weights are shared, and a TensorRT plan or TAESD's decoder stay as they are."""
    unet = FusedUNet(network.unet) if isinstance(network.unet, FoldedUNet) else network.unet
    decoder = FusedDecoder(network.decoder) if isinstance(network.decoder, PatchDecoder) else network.decoder
    made = Network(network.encoder, unet, decoder, network.dtype)
    return made.to(network.positions.device).eval().requires_grad_(False)
