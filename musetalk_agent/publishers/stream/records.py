"""How media reach an encoder in a process of its own: records on its standard input, a head and a payload each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.publishers.stream.encoder import QueuedAudio, QueuedFrame

RECORD = struct.Struct("<BdIII?")
"""Kind, time (monotonic seconds, the same in both processes), bytes that follow, width, height, key frame."""
AUDIO, FRAME, BITRATE, END = range(4)
"""int16 samples; I420 planes; bits per second as the width; the end."""


def audio_record(sound: QueuedAudio) -> bytes:
    """A record of audio, with its payload."""
    payload = sound.block.tobytes()
    return RECORD.pack(AUDIO, sound.at, len(payload), 0, 0, False) + payload


def frame_head(picture: QueuedFrame) -> bytes:
    """The head of a frame's record; its planes follow."""
    frame = picture.frame
    return RECORD.pack(FRAME, picture.at, len(frame.i420), frame.width, frame.height, picture.key)


def end_record() -> bytes:
    """The end of the stream."""
    return RECORD.pack(END, 0.0, 0, 0, 0, False)


def bitrate_record(bitrate: int) -> bytes:
    """Sets the encoder's bitrate from here on (bit/s)."""
    return RECORD.pack(BITRATE, 0.0, 0, bitrate, 0, False)


def read_records(source: BinaryIO) -> Iterator[QueuedAudio | QueuedFrame | int]:
    """Audio, frames and bitrates (bit/s) as they come, up to the end record or the end of the input."""
    while len(head := source.read(RECORD.size)) == RECORD.size:
        kind, at, size, width, height, key = RECORD.unpack(head)
        payload = source.read(size)
        if kind == END or len(payload) < size:
            return
        if kind == AUDIO:
            yield QueuedAudio(at, np.frombuffer(payload, np.int16))
        elif kind == FRAME:
            yield QueuedFrame(at, VideoFrame(np.frombuffer(payload, np.uint8), width, height, 0), key)
        else:
            yield int(width)
