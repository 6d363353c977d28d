"""whisper-tiny's encoder over short windows of sound, batched over sessions: five hidden states for ten moments (numerics §2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from musetalk_agent.features.whisper_features import BEGIN, END, HEARD, MEL_COLUMNS, PLACE, PLACES, POSITIONS, TARGET


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
    told = asking if context is states else layer.self_attn_layer_norm(context)

    def split(flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], attention.num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        split(attention.q_proj(asking)), split(attention.k_proj(told)), split(attention.v_proj(told)), attn_mask=heard
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
        told = windows[:, -1].round().long()
        column, position = self._index[:-1], self._index[:POSITIONS]
        present = (column >= 2 * told[:, BEGIN, None] + 2) & (column <= 2 * told[:, HEARD, None] + 2)
        places = (told[:, PLACE, None] + position) % PLACES
        mel = windows[:, :-1].to(self.encoder.conv1.weight.dtype)
        states = hidden_states(self.encoder, mel, present, places, TARGET)
        sounding = position[TARGET] < told[:, END, None]
        return (states * sounding[..., None, None]).flatten(1, 2)
