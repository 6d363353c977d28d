"""Encodes the speech that a film gets from the orchestrator as the agents' encoders do: AAC-LC, mono, 48 kHz.

Imported only when there is such speech: FFmpeg's libraries take 60 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from orchestrator.audio.heard_speech import HeardPcm
from orchestrator.recording.film_joiner import AAC_FRAME

_RATE = 48_000
_BITRATE = 96_000


def encode_speech(speech: Sequence[HeardPcm]) -> list[bytes]:
    """Frames of AAC, 1024 samples each at 48 kHz, with all of it one after the other. Blocks: 5 ms of a core for a second."""
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = _RATE, "mono", "fltp"
    encoder.bit_rate, encoder.time_base = _BITRATE, Fraction(1, _RATE)
    encoder.open()
    packets = []
    for frame in _frames(speech):
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [bytes(packet) for packet in packets]


def _frames(speech: Sequence[HeardPcm]) -> list[AudioFrame]:
    """The PCM at the film's rate, in frames as the encoder takes them."""
    heard: list[NDArray[np.float32]] = []
    for rate, parts in groupby(speech, key=lambda part: part.rate):
        resampler = av.AudioResampler(format="flt", layout="mono", rate=_RATE)
        samples_in = np.frombuffer(b"".join(part.pcm for part in parts), "<i2")
        samples = AudioFrame.from_ndarray(samples_in.reshape(1, -1), format="s16", layout="mono")
        samples.sample_rate = rate
        heard += [frame.to_ndarray()[0] for given in (samples, None) for frame in resampler.resample(given)]
    pcm = np.concatenate(heard) if heard else np.zeros(0, np.float32)
    pcm = np.pad(pcm, (0, -len(pcm) % AAC_FRAME))
    frames = []
    for at in range(0, len(pcm), AAC_FRAME):
        frame = AudioFrame.from_ndarray(pcm[at : at + AAC_FRAME].reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = _RATE, Fraction(1, _RATE), at
        frames.append(frame)
    return frames
