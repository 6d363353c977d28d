"""Upstream's audio features, slowly and plainly, from a written description, for comparison."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

RATE = 16_000
SEGMENT = 30 * RATE
Sound = NDArray[np.float32]
Array = NDArray[np.float32]


def counts(samples: int, fps: int) -> tuple[int, int]:
    """(video frames, vectors) of a recording, §2.5: float64, in upstream's order of operations."""
    return math.floor((samples / 16000) * fps), math.floor((samples / 16000) * 50)


def mel(sound: Sound) -> torch.Tensor:
    """[1, 80, 3000] of at most 30 s, by transformers."""
    extractor = WhisperFeatureExtractor(feature_size=80, sampling_rate=RATE, hop_length=160, chunk_length=30, n_fft=400)
    return extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features


def vectors(encoder: WhisperEncoder, sound: Sound) -> Array:
    """[⌊50 L / 16000⌋, 5, d]: 30 s at a time, zeros to 30 s, five hidden states; trimmed to the recording's length."""
    parts = []
    for at in range(0, len(sound), SEGMENT):
        with torch.no_grad():
            reported = encoder(mel(sound[at : at + SEGMENT]), output_hidden_states=True)
        parts.append(torch.stack(reported.hidden_states, dim=2)[0].numpy())
    return np.concatenate(parts)[: counts(len(sound), 25)[1]]


def upstream_chunks(features: Array, samples: int, fps: int) -> Array:
    """[frames, 50, d], with the padding that makes lips late at 24 fps (§2.6-7). Needs 80 ms of sound and fps below 50."""
    step = 50 / fps
    pad = math.ceil(step)
    left = np.zeros_like(features[: pad * 2])
    right = np.zeros_like(features[: pad * 3 * 2])
    padded = np.concatenate([left, features, right])
    out = []
    for i in range(counts(samples, fps)[0]):
        start = math.floor(i * step)
        window = padded[start : start + 10]
        assert len(window) == 10
        out.append(window.reshape(50, -1))
    return np.stack(out)


def window(features: Array, frame: int, fps: int) -> Array:
    """[50, d] of one frame as it should be at any fps: ten vectors, 4 before the one in which the frame begins and 5 after it,
    zeros where the recording has none."""
    row = 50 * frame // fps
    out = np.zeros((10, *features.shape[1:]), np.float32)
    for i in range(10):
        if 0 <= row - 4 + i < len(features):
            out[i] = features[row - 4 + i]
    return out.reshape(50, -1)


def streamed(encoder: WhisperEncoder, heard: Sound, row: int, first: int, stop: int, end: int) -> Array:
    """[50, d] of the ten vectors around position `row`, when the encoder is shown positions `first` … `stop`-1 of at most 30 s
    of sound, of which `heard` is what has been heard, and the recording has `end` vectors: transformers' own modules, one after
    the other, on that stretch alone."""
    columns = mel(heard)
    columns[:, :, 2 * stop + 1 :] = 0
    with torch.no_grad():
        states = torch.nn.functional.gelu(encoder.conv1(columns))
        states = torch.nn.functional.gelu(encoder.conv2(states)).transpose(1, 2)
        states = (states + encoder.embed_positions.weight)[:, first:stop]
        found = [states]
        for layer in encoder.layers:
            states = layer(states, None)
            found.append(states)
        found[-1] = encoder.layer_norm(found[-1])
    stacked = torch.stack(found, dim=2)[0].numpy()
    out = np.zeros((10, *stacked.shape[1:]), np.float32)
    for i in range(10):
        if first <= row - 4 + i < end:
            out[i] = stacked[row - 4 + i - first]
    return out.reshape(50, -1)
