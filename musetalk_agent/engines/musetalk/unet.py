"""MuseTalk's UNet as it is used: one step at t = 0, whose time embedding is a constant that disappears into biases."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional


class FoldedUNet(nn.Module):
    """Straight-line forward over diffusers' modules; equal to `unet(latents, 0, encoder_hidden_states=audio).sample`.

    Takes the UNet over: its time layers are gone afterwards, and it cannot be called by itself any more.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        fold_time(unet)
        self.unet: Any = unet

    def forward(self, latents: Tensor, audio: Tensor) -> Tensor:
        """`latents` `[B, 8, 32, 32]`, `audio` `[B, 50, 384]` with positions, both of the weights' dtype; `[B, 4, 32, 32]`."""
        unet = self.unet
        x = unet.conv_in(latents)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, attention in _layers(block):
                x = _attend(attention, resnet(x, None), audio)
                skips.append(x)
            for sampler in block.downsamplers or ():
                x = sampler(x)
                skips.append(x)
        middle = unet.mid_block
        x = middle.resnets[0](x, None)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = resnet(_attend(attention, x, audio), None)
        for block in unet.up_blocks:
            for resnet, attention in _layers(block):
                x = _attend(attention, resnet(torch.cat([x, skips.pop()], 1), None), audio)
            for sampler in block.upsamplers or ():
                x = sampler(x)
        made: Tensor = unet.conv_out(functional.silu(unet.conv_norm_out(x)))
        return made


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    """The block's residual layers, each with the attention behind it, or None in blocks without attention."""
    return zip_longest(block.resnets, getattr(block, "attentions", None) or ())


def _attend(attention: Any, x: Tensor, audio: Tensor) -> Tensor:
    if attention is None:
        return x
    attended: Tensor = attention(x, encoder_hidden_states=audio, return_dict=False)[0]
    return attended


@torch.no_grad()
def fold_time(unet: UNet2DConditionModel) -> None:
    """Adds each residual layer's projection of the embedding of t = 0 to the bias of its first convolution, once, in float32.

    That embedding is cos 0 and sin 0: half ones, half zeros (numerics §4).
    """
    channels = unet.config.block_out_channels[0]
    weight = unet.conv_in.weight
    zero = torch.cat([torch.ones(channels // 2), torch.zeros(channels // 2)])[None].to(weight.device)
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    embedding = functional.silu(_linear(second, functional.silu(_linear(first, zero))))
    for module in unet.modules():
        projection = getattr(module, "time_emb_proj", None)
        if projection is not None:
            bias = module.conv1.bias
            folded = (bias.float() + _linear(projection, embedding)[0]).to(bias.dtype)
            # a new parameter: the old one may be a read-only map of the file
            module.conv1.bias = nn.Parameter(folded, requires_grad=False)
            module.time_emb_proj = None
    del unet.time_embedding


def _linear(layer: Any, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight.float(), layer.bias.float())
