"""The process that encodes a film: records (`stream/records.py`) on its standard input, fragmented MP4 on its standard output.

The input begins with a line of JSON: `shape`, and `skip_idle`, with which gaps between records are left out of the film. Each piece
of output has a head (`PIECE`: kind, bytes that follow). The header is written at once, which says that the encoder is ready.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av

from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.protocol.http import FILM_CLOCK, FilmEntry
from musetalk_agent.publishers.stream.encoder import Codecs, QueuedAudio, QueuedFrame, StreamEncoder, StreamShape
from musetalk_agent.publishers.stream.records import read_records

_LAST = {b"moov": FilmEntry.HEADER, b"mdat": FilmEntry.FRAGMENT}
_HEAD = 8


class PieceSplitter:
    """Takes bytes in any portions, gives whole pieces. What an MP4 has beside those boxes belongs to the piece that follows."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._at = 0

    def push(self, data: bytes) -> Iterator[tuple[FilmEntry, bytes]]:
        """The kinds and bytes of the pieces that are whole now."""
        self._waiting += data
        while len(self._waiting) - self._at >= _HEAD:
            size = int.from_bytes(self._waiting[self._at : self._at + 4], "big")
            kind = bytes(self._waiting[self._at + 4 : self._at + _HEAD])
            if size < _HEAD:
                raise ValueError(f"a box {kind!r} of {size} bytes")
            if len(self._waiting) < self._at + size:
                return
            self._at += size
            if kind in _LAST:
                piece = bytes(self._waiting[: self._at])
                del self._waiting[: self._at]
                self._at = 0
                yield _LAST[kind], piece


PIECE = struct.Struct("<BI")
"""Kind (`FilmEntry`), bytes that follow. `END` has none: all is written."""
NICENESS = 10
"""Below everything that paces sound. A film that waits loses frames, a session that waits is heard."""
_GAP_S = 0.3
"""Longer than a frame of 15 a second, and than any block of audio: what is missing between was left out on purpose."""
_FRAGMENT_S = 0.08
"""Two frames at 25 a second. What an agent loses when it is killed is a fragment; each has a head of 250 bytes."""
_TIMESCALE = 90_000
_CLOCK_S = 0.001
"""When the film's time has moved against the agent's by more, it is logged again."""
_CODECS = Codecs(
    video={
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "main",
        "crf": "23",
        "forced-idr": "1",
        # parameter sets are in the stream too, so that parts of encoders that differ can stand in one film
        "x264-params": "scenecut=0:repeat-headers=1",
    },
    audio="aac",
    audio_bitrate=96_000,
    channels=1,
    audio_options={},
    keyframe_s=2.0,
)


class _Output:
    """A file as PyAV wants it: whole pieces go to standard output, with their heads."""

    def __init__(self, target: BinaryIO) -> None:
        self._target, self._splitter = target, PieceSplitter()

    def write(self, data: bytes) -> int:
        for kind, piece in self._splitter.push(bytes(data)):
            self._target.write(PIECE.pack(kind, len(piece)))
            self._target.write(piece)
        self._target.flush()
        return len(data)


class _FilmClock:
    """Logs when second 0 of the part is heard, whenever that has changed: sound came late, or idle time was left out."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._zero: float | None = None

    def note(self, at: float, since: float, until: float) -> None:
        """Sound from `since` to `until` (seconds of the part) was added, whose end is heard at `at` (monotonic seconds)."""
        zero = at - until
        if until > since and (self._zero is None or abs(zero - self._zero) > _CLOCK_S):
            self._zero = zero
            self._target.write(PIECE.pack(FilmEntry.CLOCK, FILM_CLOCK.size) + FILM_CLOCK.pack(since, zero))


class IdleCut:
    """Times of a film out of which gaps are cut: what comes after a gap follows at once on what was before it."""

    def __init__(self) -> None:
        self._end: float | None = None
        self._left_out = 0.0

    def place(self, at: float, seconds: float) -> float:
        """Where media of `at` that last so many seconds belong."""
        if self._end is not None and at - self._end > _GAP_S:
            self._left_out += at - self._end
        self._end = max(self._end or at, at + seconds)
        return at - self._left_out


def encode(source: BinaryIO, target: BinaryIO, ready: Callable[[], object] = lambda: None) -> None:
    """Encodes the records of `source` up to their end, and writes the pieces to `target`; calls `ready` once the header is written.

    Raises what the encoders do.
    """
    about = json.loads(source.readline())
    shape = StreamShape(**about["shape"])
    options = {
        "movflags": "empty_moov+default_base_moof+skip_trailer",
        "frag_duration": str(round(_FRAGMENT_S * 1_000_000)),
        "video_track_timescale": str(_TIMESCALE),
        "flush_packets": "1",
    }
    container = av.open(_Output(target), "w", format="mp4", options=options)
    encoder = StreamEncoder(container, shape, _CODECS)
    encoder.open()
    ready()
    cut = IdleCut() if about["skip_idle"] else None
    clock = _FilmClock(target)
    for item in read_records(source):
        if isinstance(item, QueuedAudio):
            seconds = len(item.block) / ROOM_RATE
            at = cut.place(item.at, seconds) if cut else item.at
            before = encoder.audio_s
            encoder.play(QueuedAudio(at, item.block))
            clock.note(item.at + seconds, before, encoder.audio_s)
        elif isinstance(item, QueuedFrame):
            at = cut.place(item.at, 1 / shape.fps) if cut else item.at
            encoder.show(QueuedFrame(at, item.frame, item.key))
    encoder.finish()
    container.close()
    target.write(PIECE.pack(FilmEntry.END, 0))
    target.flush()


def main() -> None:
    """Encodes what comes until its end; then the rest is written."""
    encode(
        sys.stdin.buffer, sys.stdout.buffer, ready=lambda: os.nice(NICENESS)
    )  # a start does not wait behind everything


if __name__ == "__main__":
    main()
