"""One segment of an agent's speech for the avatar: what was captured, sent and heard of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from livekit import rtc


@dataclass(eq=False)
class CapturedSegment:
    """Speech that livekit-agents waits for. Times are in seconds from its first sample.

    Attributes:
        rate, channels: of its int16 PCM; channels are interleaved.
        heard_s: where `pcm` begins. What lies before was heard.
        pcm: what was not heard for certain.
        sent: bytes of `pcm` that the avatar has.
        writer: the stream to the avatar that is open.
        there: the avatar has a part of it, and has not reported it over.
        whole: no more of it comes.
        dropped: it is to end where it is.
        begun: it was heard once.
        playing_since: when the avatar began with `pcm`, by the monotonic clock; None while it is not heard.
        read_s: `AvatarOutput.played` gave it out so far.
    """

    rate: int
    channels: int
    heard_s: float = 0.0
    pcm: bytearray = field(default_factory=bytearray)
    sent: int = 0
    writer: rtc.ByteStreamWriter | None = None
    there: bool = False
    whole: bool = False
    dropped: bool = False
    begun: bool = False
    playing_since: float | None = None
    read_s: float = 0.0

    def take_back(self, position_s: float) -> None:
        """The avatar has it no more: of the part that it had, so many seconds were heard."""
        heard = min(round(position_s * self.rate) * 2 * self.channels, len(self.pcm))
        del self.pcm[:heard]
        self.heard_s += heard / self._bytes_per_s
        self.sent, self.writer, self.there, self.playing_since = 0, None, False, None

    def next_piece(self, seconds: float) -> bytes:
        """The next bytes to send, of so many seconds at most."""
        return bytes(self.pcm[self.sent : self.sent + round(seconds * self.rate) * 2 * self.channels])

    @property
    def complete(self) -> bool:
        """All of it was sent, and its stream is closed."""
        return self.whole and self.there and self.writer is None

    @property
    def position_s(self) -> float:
        """Heard so far, by the clock."""
        if self.playing_since is None:
            return self.heard_s
        return min(self.heard_s + time.monotonic() - self.playing_since, self.end_s)

    @property
    def end_s(self) -> float:
        """Came so far."""
        return self.heard_s + len(self.pcm) / self._bytes_per_s

    @property
    def sent_s(self) -> float:
        """Sent so far."""
        return self.heard_s + self.sent / self._bytes_per_s

    def between(self, begin_s: float, end_s: float) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Samples of its first channel, of a part that is still kept."""
        first, last = (2 * self.channels * round((at_s - self.heard_s) * self.rate) for at_s in (begin_s, end_s))
        return np.frombuffer(bytes(self.pcm[first:last]), np.int16)[:: self.channels]

    @property
    def _bytes_per_s(self) -> int:
        return 2 * self.channels * self.rate
