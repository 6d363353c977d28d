"""The network of a frame, from a mel window and an idle frame's latents to bytes, as one call that a CUDA graph can capture.

Its parts: whisper-tiny's encoder over short windows of audio, MuseTalk's UNet at its one step t = 0, and the VAE or
TAESD decoder. The VAE's encoder is used in preparation only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from musetalk_agent.features.whisper_features import BEGIN, END, HEARD, MEL_COLUMNS, PLACE, PLACES, POSITIONS, TARGET

_SIDE, _STEP, _BORDER = 4, 2, 1
"""Of the transposed convolution: it doubles the side, as the original with its border of one pixel does."""


@torch.no_grad()
def upsampling_convolution(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """A layer equal to nearest-neighbour doubling followed by `convolution`, with four multiplications where they do nine.

    A pixel of the doubled image sees two rows of the original: an even one the kernel's first row on the row before, and the sum
    of the other two on its own row; an odd one is the mirror image of that. Those are the rows of a transposed convolution of side
    4 and step 2 with the kernel `[w2, w1+w2, w0+w1, w0]`. Columns likewise, and a border of zeros stays one. So it is equal up to
    rounding, and the doubled image is never written.

    `[B, C, h, w]` to `[B, D, 2h, 2w]`, in the convolution's dtype and on its device. The sums are made in float32.
    Raises ValueError for a convolution that is not 3×3 with step 1 and a border of one zero.
    """
    plain = convolution.groups == 1 and convolution.padding_mode == "zeros"
    if not plain or (convolution.kernel_size, convolution.stride, convolution.padding) != ((3, 3), (1, 1), (1, 1)):
        raise ValueError(f"{convolution} is not 3×3 with step 1 and a border of one zero")
    weight = convolution.weight
    folded = _folded(_folded(weight.float(), 2), 3).transpose(0, 1).to(weight.dtype)
    made = nn.ConvTranspose2d(
        convolution.in_channels,
        convolution.out_channels,
        _SIDE,
        _STEP,
        _BORDER,
        bias=convolution.bias is not None,
        device="meta",
    )
    made.weight = nn.Parameter(folded.contiguous(), requires_grad=False)
    made.bias = convolution.bias
    return made.train(convolution.training)


def _folded(weight: Tensor, dim: int) -> Tensor:
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


def fold_upsamplers(module: Any) -> None:
    """Replaces diffusers' upsamplers within `module` in place: those of the UNet and the VAE, and TAESD's pairs of layers."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and isinstance(child.conv, nn.Conv2d):
                setattr(parent, name, upsampling_convolution(child.conv))
        if isinstance(parent, nn.Sequential):
            for at, (doubling, convolution) in enumerate(pairwise(list(parent))):
                if isinstance(doubling, nn.Upsample) and isinstance(convolution, nn.Conv2d):
                    # positions stay: the layer in front of the convolution passes its input on
                    parent[at], parent[at + 1] = nn.Identity(), upsampling_convolution(convolution)


AUDIO_ROWS, AUDIO_WIDTH = 50, 384
LATENT_SHAPE = (8, 32, 32)
"""Masked latent and reference latent of an idle frame, four channels each."""


def positions(rows: int = AUDIO_ROWS, width: int = AUDIO_WIDTH) -> Tensor:
    """The sinusoids that are added to the audio, float32 `[rows, width]`."""
    place = torch.arange(rows, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    table = torch.zeros(rows, width)
    table[:, 0::2] = torch.sin(place * rate)
    table[:, 1::2] = torch.cos(place * rate)
    return table


class Network(nn.Module):
    """Audio encoder, UNet and decoder in a row.

    Args:
        encoder: float32 features `[B, columns, 80]` to `[B, 50, 384]` of `dtype` (`whisper.AudioEncoder`).
        unet: latents `[B, 8, 32, 32]` and audio `[B, 50, 384]` to `[B, 4, 32, 32]` (`unet.FoldedUNet`).
        decoder: `[B, 4, 32, 32]` to RGB `[B, 3, h, 256]`, -1 … 1.
        dtype: of all weights.
    """

    positions: Tensor

    def __init__(self, encoder: nn.Module, unet: nn.Module, decoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.unet, self.decoder = encoder, unet, decoder
        self.dtype = dtype
        self.register_buffer("positions", positions().to(dtype), persistent=False)

    def forward(self, mel: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`mel` float32 `[B, columns, 80]`, `latents` float16 `[B, 8, 32, 32]`, both on the network's device.

        Returns uint8 BGR `[B, h, 256, 3]`, the lowest `h` rows of the faces, and bool `[B]`, False for a face to throw away.
        """
        audio = self.encoder(mel) + self.positions
        return to_pixels(self.decoder(self.unet(latents.to(self.dtype), audio)))


def hidden_states(encoder: WhisperEncoder, mel: Tensor, present: Tensor, places: Tensor, rows: slice) -> Tensor:
    """The encoder over P consecutive 20 ms positions of a recording, as if the recording consisted of the columns present.

    Where `WhisperEncoder.forward` insists on 30 s, this takes any stretch of them. Positions that are absent are neither
    attended to nor returned (zeros); the convolutions see the zero padding there that they see at a recording's edge.

    Args:
        mel: float `[B, 2P+3, 80]`, columns 2a-2 … 2b+2 for positions a … b.
        present: bool `[B, 2P+3]`; a position is there when its own column 2p and column 2p+2 are.
        places: int64 `[B, P]`, which learned position each one takes, 0 … 1499.
        rows: which of the P positions to return; T of them.

    Returns:
        `[B, T, 5, d_model]`: convolution + position, the outputs of the layers but the last, the last after its layer norm.
    """
    here = present[:, 2:-1:2] & present[:, 4::2]
    kept = present.to(mel.dtype)[:, None]
    states = F.gelu(F.conv1d(mel.transpose(1, 2) * kept, encoder.conv1.weight, encoder.conv1.bias)) * kept[..., 1:-1]
    states = F.gelu(F.conv1d(states, encoder.conv2.weight, encoder.conv2.bias, stride=2)).transpose(1, 2)
    states = states + encoder.embed_positions.weight[places]
    heard = (here | ~here.any(dim=1, keepdim=True))[:, None, None]  # with nothing present attend to all: no NaN
    found = [states[:, rows]]
    for layer in encoder.layers[:-1]:
        states = _layer(layer, states, states, heard)
        found.append(states[:, rows])
    found.append(encoder.layer_norm(_layer(encoder.layers[-1], states[:, rows], states, heard)))
    return torch.stack(found, dim=2) * here[:, rows, None, None].to(mel.dtype)


def _layer(layer: WhisperEncoderLayer, states: Tensor, context: Tensor, heard: Tensor) -> Tensor:
    """One pre-norm layer: `states` (some of the positions, `[B, T, d]`) attend to `context` (all of them, `[B, P, d]`)."""
    attention = layer.self_attn
    asking = layer.self_attn_layer_norm(states)
    context_normed = asking if context is states else layer.self_attn_layer_norm(context)

    def split(flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], attention.num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        split(attention.q_proj(asking)),
        split(attention.k_proj(context_normed)),
        split(attention.v_proj(context_normed)),
        attn_mask=heard,
    )
    states = states + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    out: Tensor = states + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(states))))
    return out


class AudioEncoder(nn.Module):
    """Batches of `features.whisper` windows to the UNet's audio context.

    Static shapes and no synchronisation: it can be captured in a CUDA graph. `forward` wants the windows in float32 whatever
    the weights' dtype, because their last row holds integers up to 1499.
    """

    _index: Tensor

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("_index", torch.arange(MEL_COLUMNS), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """float32 `[B, MEL_COLUMNS, 80]` → `[B, 50, d_model]` in the weights' dtype, row = 5·t + layer, without the positional
        encoding that the UNet's side adds. Vectors before a segment's start and after its end are zeros, as upstream pads."""
        header = windows[:, -1].round().long()
        column, position = self._index[:-1], self._index[:POSITIONS]
        present = (column >= 2 * header[:, BEGIN, None] + 2) & (column <= 2 * header[:, HEARD, None] + 2)
        places = (header[:, PLACE, None] + position) % PLACES
        mel = windows[:, :-1].to(self.encoder.conv1.weight.dtype)
        states = hidden_states(self.encoder, mel, present, places, TARGET)
        within_segment = position[TARGET] < header[:, END, None]
        return (states * within_segment[..., None, None]).flatten(1, 2)


class FoldedUNet(nn.Module):
    """Straight-line forward over diffusers' modules; equal to `unet(latents, 0, encoder_hidden_states=audio).sample`.

    Takes the UNet over: its time layers and upsamplers are folded afterwards, and it cannot be called by itself any more.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        fold_time(unet)
        fold_upsamplers(unet)
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

    That embedding is cos 0 and sin 0: half ones, half zeros.
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


FACE = 256
"""Side of the network's face, in pixels."""
BLACK = 8
"""A face without any brighter byte in its lower half is no face: broken weights or an overflow, decoded to black."""


class PatchDecoder(nn.Module):
    """The decoder of the Stable Diffusion VAE. Takes it over: its upsamplers are folded afterwards.

    Args:
        first_row: latent row from which on rows are decoded; the mid block, whose attention looks at all rows, always sees all.
    """

    def __init__(self, vae: AutoencoderKL, first_row: int = 0) -> None:
        super().__init__()
        self.post_quant_conv: Any = vae.post_quant_conv
        self.decoder: Any = vae.decoder
        fold_upsamplers(self.decoder)
        self.scale = 1 / vae.config.scaling_factor
        self.first_row = first_row

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, 4, 32, 32]` as the UNet gives them to RGB `[B, 3, 256 - 8·first_row, 256]`, -1 … 1, the lowest rows of the face."""
        decoder = self.decoder
        x = decoder.mid_block(decoder.conv_in(self.post_quant_conv(self.scale * latents)), None)
        x = x[:, :, self.first_row :]
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = resnet(x, None)
            for sampler in block.upsamplers or ():
                x = sampler(x)
        decoded: Tensor = decoder.conv_out(functional.silu(decoder.conv_norm_out(x)))
        return decoded


class TinyDecoder(nn.Module):
    """TAESD's decoder, its upsamplers folded. It reads the UNet's latents as they are: its scaling factor is 1."""

    def __init__(self, taesd: AutoencoderTiny) -> None:
        super().__init__()
        self.decoder: Any = taesd.decoder
        fold_upsamplers(self.decoder)

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, 4, 32, 32]` to RGB `[B, 3, 256, 256]`, about -1 … 1."""
        decoded: Tensor = self.decoder(latents)
        return decoded


def to_pixels(decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of decoded faces, on their device.

    `decoded` RGB `[B, 3, h, 256]`, -1 … 1, in the decoder's dtype. Returns uint8 BGR `[B, h, 256, 3]`, rounded half to even,
    and bool `[B]`: False where something was not a finite number, or the face is black.
    """
    finite = torch.isfinite(decoded).flatten(1).all(1)
    unit = (decoded / 2 + 0.5).clamp(0, 1)  # in the decoder's dtype, as upstream
    pixels = (unit.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(3).contiguous()
    bright = pixels[:, -FACE // 2 :].flatten(1).amax(1) > BLACK
    return pixels, finite & bright


class FaceEncoder(nn.Module):
    """The VAE's encoder for preparation: the mean of the distribution (`mode()`), not a sample, so that it repeats."""

    levels: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder: Any = vae.encoder
        self.quant_conv: Any = vae.quant_conv
        self.scale = vae.config.scaling_factor
        # /255 in float64, then float32, as upstream does it on the host
        levels = ((np.arange(256) / 255.0).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
        self.register_buffer("levels", torch.from_numpy(levels), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 BGR `[B, 256, 256, 3]` on the encoder's device to float16 `[B, 8, 32, 32]`: masked latent, reference latent."""
        pixels = self.levels[faces.flip(3).permute(0, 3, 1, 2).long()]
        masked = pixels.clone()
        masked[:, :, FACE // 2 :] = -1.0
        both = torch.cat([masked, pixels]).to(self.quant_conv.weight.dtype)
        moments = self.quant_conv(self.encoder(both))
        mean = moments[:, : moments.shape[1] // 2] * self.scale
        count = len(faces)
        return torch.cat([mean[:count], mean[count:]], 1).to(torch.float16)
