"""Speech whose every tenth of a second says which one it is, so that what was lost or said twice can be found from the sound.

A period of one second holds eight pieces of 100 ms with two tones each, then 200 ms of silence; the `pattern` engine shows white
while it sounds. Pieces are numbered from 0, the silent ones too; numbers repeat after 51.2 s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from musetalk_agent.media_types import Pcm

RATE = 16_000
PIECE_S = 0.1
_PIECE = round(PIECE_S * RATE)
_LOW = 400 + 60 * np.arange(16)
_HIGH = 1500 + 60 * np.arange(32)
_SPAN = len(_LOW) * len(_HIGH)
_WINDOW, _HOP = 1280, 320  # 80 ms, 20 ms
_HOP_MS = 1000 * _HOP / RATE
_LOUD = 1000.0  # RMS of a window


def sounds(number: int) -> bool:
    """Whether a piece is not one of the silent two of its second."""
    return number % 10 < 8


def coded(seconds: int, first: int = 0) -> Pcm:
    """That speech, int16 mono 16 kHz; `first` is the number of its first piece, a multiple of ten."""
    at = np.arange(_PIECE) / RATE
    edge = np.minimum(1, np.minimum(at, at[::-1]) / 0.003)  # clicks would be heard as other tones
    pieces = []
    for number in range(first, first + 10 * seconds):
        low, high = _LOW[number % len(_LOW)], _HIGH[number // len(_LOW) % len(_HIGH)]
        tones = np.sin(2 * np.pi * low * at) + np.sin(2 * np.pi * high * at)
        pieces.append(7000 * edge * tones * sounds(number))
    pcm: Pcm = np.concatenate(pieces).astype(np.int16)
    return pcm


@dataclass(frozen=True)
class Seen:
    """A piece that was heard: when it began, on the clock of the sound, and for how many milliseconds."""

    number: int
    at: float
    ms: float


def decode(begun: float, pcm: Pcm) -> list[Seen]:
    """The pieces in a strand of sound whose first sample is at `begun`, in the order heard; one heard twice is there twice."""
    if len(pcm) < _WINDOW:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(pcm.astype(np.float32), _WINDOW)[::_HOP]
    loud = np.sqrt((windows**2).mean(axis=1)) > _LOUD
    shaped = windows * np.hanning(_WINDOW)
    low, high = _strongest(shaped, _LOW), _strongest(shaped, _HIGH)
    numbers = np.where(loud & (low >= 0) & (high >= 0), low + len(_LOW) * high, -1)
    found: list[Seen] = []
    for index, value in enumerate(numbers):
        if value < 0:
            continue
        at = begun + index * _HOP / RATE
        last = found[-1] if found else None
        if last is not None and last.number == value and at - last.at < 2 * PIECE_S + last.ms / 1000:
            found[-1] = Seen(last.number, last.at, last.ms + _HOP_MS)
        else:
            found.append(Seen(int(value), at, _HOP_MS))
    return [piece for piece in found if piece.ms > _HOP_MS]  # one window alone is a mixture of two


def _strongest(windows: np.ndarray, tones: np.ndarray) -> np.ndarray:
    """Index of the tone that stands out, or -1."""
    time = np.arange(_WINDOW) / RATE
    power = np.abs(windows @ np.exp(-2j * np.pi * np.outer(time, tones))) ** 2
    order = np.sort(power, axis=1)
    return np.where(order[:, -1] > 2 * order[:, -2], power.argmax(axis=1), -1)


def strand(blocks: Sequence[tuple[float, Pcm]]) -> Iterable[tuple[float, Pcm]]:
    """Blocks with the time each came, joined to runs without a hole of more than 300 ms: (when the first sample came, PCM)."""
    run: list[Pcm] = []
    begun = end = 0.0
    for at, block in blocks:
        first = at - len(block) / RATE
        if run and abs(first - end) > 0.3:
            yield begun, np.concatenate(run)
            run = []
        if not run:
            begun = end = first
        run.append(block)
        end += len(block) / RATE
    if run:
        yield begun, np.concatenate(run)


@dataclass(frozen=True)
class Account:
    """What became of a piece of speech that was sent.

    Args:
        lost_ms: of the pieces that sound, how much was not heard; a piece heard for 60 ms or more counts as whole.
        doubled_ms: heard again: a second time for 60 ms or more, or one piece for more than 160 ms.
        longest_gap_s: the longest time between two neighbouring pieces beyond what lies between them in the speech.
        lost: numbers of the pieces that are missing or torn.
        doubled: numbers of the pieces that were heard twice.
        gap_at: when the longest gap began.
    """

    lost_ms: float
    doubled_ms: float
    longest_gap_s: float
    lost: list[int]
    doubled: list[int]
    gap_at: float


def account(heard: Iterable[Seen], seconds: int, first: int = 0) -> Account:
    """Compares what was heard, on whatever track, with `coded(seconds, first)`."""
    pieces = sorted(heard, key=lambda piece: piece.at)
    said = [n for n in range(first, first + 10 * seconds) if sounds(n)]
    length = dict.fromkeys((n % _SPAN for n in said), 0.0)
    times = dict.fromkeys(length, 0)
    for piece in pieces:
        if piece.number in length:
            length[piece.number] += piece.ms
            times[piece.number] += piece.ms >= 60
    lost = [n for n in said if length[n % _SPAN] < 60]
    doubled = [n for n in said if times[n % _SPAN] > 1 or length[n % _SPAN] > 160]
    gap, gap_at = 0.0, 0.0
    known = [piece for piece in pieces if piece.number in length]
    for before, after in itertools.pairwise(known):
        step = (after.number - before.number) % _SPAN * PIECE_S
        extra = after.at - before.at - min(step, 10 * PIECE_S)
        if extra > gap:
            gap, gap_at = extra, before.at
    return Account(
        sum(100 - length[n % _SPAN] for n in lost),
        sum(max(0.0, length[n % _SPAN] - 100) for n in doubled),
        gap,
        lost,
        doubled,
        gap_at,
    )
