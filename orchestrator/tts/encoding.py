"""Speech in the formats that clients of `/v1/audio/speech` ask for, encoded while it is made."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from musetalk_agent.resample import Resampler
from orchestrator.tts.synthesizer import SpeechChunk

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

ENCODED_RATE = 24_000
"""Hz: OpenAI's `pcm` is int16 little endian mono at this rate; the other formats have it too."""
BITRATE = 64_000
"""Bits a second of `mp3`, `opus` and `aac`: speech at 24 kHz loses nothing that is heard."""


class EncodedFormat(StrEnum):
    """`response_format` of OpenAI's dialect."""

    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"

    @property
    def media_type(self) -> str:
        """Its Content-Type; Opus comes in Ogg, AAC as ADTS."""
        return {"mp3": "audio/mpeg", "opus": "audio/ogg"}.get(self.value, f"audio/{self.value}")


@dataclass(frozen=True, slots=True)
class EncodedSpeech:
    """Bytes of the file that follow the ones before, and the words that begin in the speech they were made of.

    Words are `(text, start, end)` in seconds from the first sample of the speech. Either may be empty.
    """

    data: bytes
    words: tuple[tuple[str, float, float], ...] = ()


class _Encoder(Protocol):
    def push(self, pcm: bytes) -> bytes:
        """Takes int16 mono at `ENCODED_RATE`; returns the bytes that are ready."""
        ...

    def finish(self) -> bytes:
        """No more comes: the rest."""
        ...


async def encoded(
    chunks: AsyncGenerator[SpeechChunk, None], kind: EncodedFormat
) -> AsyncGenerator[EncodedSpeech, None]:
    """Speech as a file of this kind, piece by piece as it is made; `wav` once it is whole, so that its header holds its length.

    No piece is made before the one before it was taken. The encoder works in a thread. Closing it, or cancelling the task inside
    it, closes the voice. Raises what the voice raises.
    """
    resampler: Resampler | None = None
    async with aclosing(chunks):
        encoder = await asyncio.to_thread(_encoder, kind)
        async for chunk in chunks:
            resampler = resampler or Resampler(chunk.sample_rate, ENCODED_RATE)
            pcm = resampler.push(np.frombuffer(chunk.pcm, np.int16)).tobytes()
            data = await asyncio.to_thread(encoder.push, pcm) if pcm else b""
            rate = chunk.sample_rate
            words = tuple((each.text, round(each.start / rate, 4), round(each.end / rate, 4)) for each in chunk.words)
            if data or words:
                yield EncodedSpeech(data, words)
        rest = resampler.flush().tobytes() if resampler is not None else b""
        data = await asyncio.to_thread(lambda: encoder.push(rest) + encoder.finish())
        if data:
            yield EncodedSpeech(data)


def _encoder(kind: EncodedFormat) -> _Encoder:
    match kind:
        case EncodedFormat.PCM:
            return _Raw()
        case EncodedFormat.WAV:
            return _Wave()
    return _Library(kind)


class _Raw:
    def push(self, pcm: bytes) -> bytes:
        return pcm

    def finish(self) -> bytes:
        return b""


class _Wave:
    def __init__(self) -> None:
        self._pcm = bytearray()

    def push(self, pcm: bytes) -> bytes:
        self._pcm += pcm
        return b""

    def finish(self) -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(ENCODED_RATE)
            writer.writeframes(self._pcm)
        return file.getvalue()


class _Sink:
    """Where the container is written to. It cannot seek, so that no container waits for its end."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """As a file's."""
        self.data += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self.data)
        self.data.clear()
        return taken


_CONTAINERS = {
    EncodedFormat.MP3: ("mp3", "libmp3lame", {"write_xing": "0"}),
    EncodedFormat.OPUS: ("ogg", "libopus", {"page_duration": "100000"}),  # µs; a second by itself
    EncodedFormat.AAC: ("adts", "aac", {}),
    EncodedFormat.FLAC: ("flac", "flac", {}),
}


class _Library:
    """FFmpeg's encoders. The first one loads the library, 0.2 s and 20 MB that most deployments never need."""

    def __init__(self, kind: EncodedFormat) -> None:
        import av

        self._frame = av.AudioFrame
        container, codec, options = _CONTAINERS[kind]
        self._sink = _Sink()
        options = {**options, "flush_packets": "1"}
        self._container = av.open(self._sink, "w", format=container, options=options)
        self._stream = cast("AudioStream", self._container.add_stream(codec, rate=ENCODED_RATE, layout="mono"))
        if kind is not EncodedFormat.FLAC:
            self._stream.bit_rate = BITRATE
        self._at = 0

    def push(self, pcm: bytes) -> bytes:
        if pcm:
            frame = self._frame.from_ndarray(np.frombuffer(pcm, np.int16).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate, frame.pts = ENCODED_RATE, self._at
            self._at += frame.samples
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()
