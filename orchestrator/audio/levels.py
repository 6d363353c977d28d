"""How loud and how fast the last second of a source was."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

WINDOW_S = 1.0
FLOOR_DBFS = -120.0
_SLOTS = 512  # messages of 2 ms fill a second; beyond that the oldest go first


@dataclass(frozen=True)
class Level:
    """Of the last second: bytes per second as sent, RMS and peak against full scale (None without audio)."""

    bytes_per_s: float
    rms_dbfs: float | None
    peak_dbfs: float | None


def peak(pcm: bytes) -> int:
    """Largest magnitude of int16 little endian samples, 0 for none."""
    samples = np.frombuffer(pcm, "<i2")
    return int(max(samples.max(), -int(samples.min()))) if samples.size else 0


class Meter:
    """Keeps one line per message of the last second."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int, int, float, int]] = deque(maxlen=_SLOTS)

    def add(self, pcm: bytes, sent_bytes: int, now: float) -> None:
        """Counts a message of `sent_bytes` that gave these int16 samples."""
        samples = np.frombuffer(pcm, "<i2").astype(np.float64)
        self._recent.append((now, sent_bytes, samples.size, float(np.dot(samples, samples)), peak(pcm)))

    def level(self, now: float) -> Level:
        """What the last second was like."""
        rows = [row for row in self._recent if now - row[0] <= WINDOW_S]
        count = sum(row[2] for row in rows)
        if not count:
            return Level(bytes_per_s=float(sum(row[1] for row in rows)), rms_dbfs=None, peak_dbfs=None)
        rms = math.sqrt(sum(row[3] for row in rows) / count)
        return Level(
            bytes_per_s=sum(row[1] for row in rows) / WINDOW_S,
            rms_dbfs=_dbfs(rms),
            peak_dbfs=_dbfs(max(row[4] for row in rows)),
        )


def _dbfs(magnitude: float) -> float:
    return round(max(FLOOR_DBFS, 20 * math.log10(magnitude / 32768)), 1) if magnitude > 0 else FLOOR_DBFS
