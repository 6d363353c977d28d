"""Speech whose every 100 ms can be distinguished: loss, doubling and order are visible at the other end."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import numpy as np
from livekit import rtc

from tests.viewer import RATE, Viewer
from tests.waiting import until

SYMBOL_S = 0.1
LOWEST_HZ, STEP_HZ = 600, 90
_WINDOW = RATE // 50


def tone_code(symbols: int, rate: int = RATE) -> bytes:
    """int16 mono PCM: symbol `k` is 100 ms of its own frequency, up to 70 of them."""
    count = round(SYMBOL_S * rate)
    at = np.arange(count) / rate
    edge = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.003 * rate))
    tones = [np.sin(2 * np.pi * (LOWEST_HZ + STEP_HZ * k) * at) * edge for k in range(symbols)]
    return (np.concatenate(tones) * 9000).astype("<i2").tobytes()


@dataclass
class _Reading:
    """How far a track's sound was read: `found` holds when each 20 ms with a tone came, and its symbol."""

    blocks: int = 0
    held: np.ndarray = field(default_factory=lambda: np.zeros(0))
    last: float = 0.0
    found: list[tuple[float, int]] = field(default_factory=list)

    def take(self, at: float, block: np.ndarray) -> None:
        self.held = np.concatenate([self.held, block])
        while len(self.held) >= _WINDOW:
            symbol = _symbol(self.held[:_WINDOW])
            self.held = self.held[_WINDOW:]
            self.last = max(self.last, at - len(self.held) / RATE)  # blocks may come in bursts
            if symbol is not None:
                self.found.append((self.last, symbol))


@dataclass
class Ears(Viewer):
    """A viewer that keeps the tracks' sound apart."""

    by_track: dict[str, list[tuple[float, np.ndarray]]] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    _readings: dict[str, _Reading] = field(default_factory=dict)

    def _subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, who: rtc.RemoteParticipant
    ) -> None:
        self.speakers[track.sid] = who.identity
        super()._subscribed(track, publication, who)

    async def _listen(self, track: rtc.Track) -> None:
        blocks = self.by_track.setdefault(track.sid, [])
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
        try:
            async for event in stream:
                block = np.frombuffer(event.frame.data, np.int16).copy()
                blocks.append((time.monotonic(), block))
                self.sound.append((time.monotonic(), block))
        finally:
            await stream.aclose()

    def spoken(self, *sids: str) -> list[tuple[float, int]]:
        """When each 20 ms with a tone came, and its symbol, of these tracks or of all, in order of time."""
        found = [heard for sid in self.by_track if not sids or sid in sids for heard in self._symbols(sid)]
        return sorted(found)

    def _symbols(self, sid: str) -> list[tuple[float, int]]:
        """Of one track. Each block is looked at once: this is polled, and a busy machine has no time for more."""
        blocks, reading = self.by_track[sid], self._readings.setdefault(sid, _Reading())
        for at, block in blocks[reading.blocks :]:
            reading.take(at, block)
        reading.blocks = len(blocks)
        return reading.found

    def forget(self) -> None:
        """What was heard so far."""
        for blocks in self.by_track.values():
            blocks.clear()
        self._readings.clear()

    def who_said(self, symbol: int) -> str:
        """The track that said it last."""
        return max(self.by_track, key=lambda sid: max((at for at, s in self.spoken(sid) if s == symbol), default=0.0))

    def durations(self, symbols: int) -> np.ndarray:
        """How many seconds of each symbol were heard."""
        counts = np.bincount([s for _, s in self.spoken() if 0 <= s < symbols], minlength=symbols)
        return counts * _WINDOW / RATE

    def longest_gap(self) -> float:
        """Seconds of the longest silence between the first and the last tone."""
        times = [at for at, _ in self.spoken()]
        return max(b - a for a, b in itertools.pairwise(times)) - _WINDOW / RATE


def once(durations: np.ndarray) -> bool:
    """Whether every symbol was heard, and most of them once: a busy machine's jitter buffers stretch and shorten some."""
    return bool(durations.min() > 0 and np.median(durations) <= 1.7 * SYMBOL_S)


def _symbol(window: np.ndarray) -> int | None:
    if np.sqrt(np.mean(np.square(window))) < 2500:  # silence, or a faded edge that would be misread
        return None
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), 4096))
    return round((float(np.argmax(spectrum)) * RATE / 4096 - LOWEST_HZ) / STEP_HZ)


async def heard_all(ears: Ears, symbol: int, settle_s: float = 0.25) -> bool:
    """Waits until `symbol` was heard, and then until no tone has come for `settle_s`. Never False: it fails after `NEVER_S`."""
    before = max(
        0, len(ears.spoken()) - 20
    )  # what was heard just now counts, and what is heard while this does not look
    last = await until(lambda: [at for at, s in ears.spoken()[before:] if s == symbol])
    while settle_s and time.monotonic() < last[-1] + settle_s:
        await asyncio.sleep(max(0.0, last[-1] + settle_s - time.monotonic()))
        last = [at for at, _ in ears.spoken()]
    return True


async def listening(ears: Ears) -> None:
    """The avatar's sound reaches the viewer, half a second of it: what is said from now on is heard from its beginning."""
    await until(lambda: any(sum(len(b) for _, b in blocks) >= RATE // 2 for blocks in ears.by_track.values()))
