"""Speech that says where it is: every 200 ms two tones of their own, so that what is lost or doubled is known at any receiver."""

from __future__ import annotations

import itertools

import numpy as np

from musetalk_agent.media_types import Pcm

SLOT_S = 0.2
"""Long enough to be known when a receiver that catches up after a stall of the machine has squeezed half of it away."""
LOW = 400 + 60 * np.arange(11)
HIGH = 1400 + 80 * np.arange(13)
SLOTS = len(LOW) * len(HIGH)
_WINDOW_S, _HOP_S = 0.05, 0.02


def spoken_code(slots: int, rate: int) -> Pcm:
    """Slot `i` sounds tones `i mod 11` and `i mod 13`; at most 143 slots."""
    assert slots <= SLOTS
    index = np.arange(round(slots * SLOT_S * rate)) * round(1 / SLOT_S) // rate
    t = np.arange(len(index)) / rate
    wave = np.sin(2 * np.pi * LOW[index % 11] * t) + np.sin(2 * np.pi * HIGH[index % 13] * t)
    return (7_000 * wave).astype(np.int16)


def _strongest(windows: np.ndarray, tones: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every window the strongest tone, and how much it stands out."""
    t = np.arange(windows.shape[1]) / rate
    power = np.abs(windows @ np.exp(-2j * np.pi * t[:, None] * tones))
    order = np.sort(power, axis=1)
    return power.argmax(axis=1), order[:, -1] / np.maximum(1e-9, order[:, -2])


def heard_slots(wave: np.ndarray, rate: int) -> list[int]:
    """Slots in the order in which they were heard, each once while it lasts; a slot counts when it is clear twice, 20 ms apart."""
    wave = wave.astype(np.float32) / max(1.0, float(np.abs(wave).max(initial=0)))
    size, hop = round(_WINDOW_S * rate), round(_HOP_S * rate)
    windows = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
    windows = windows[np.sqrt(np.mean(windows**2, axis=1)) > 0.1] * np.hanning(size)
    (low, sure), (high, certain) = (_strongest(windows, tones, rate) for tones in (LOW, HIGH))
    clear = np.minimum(sure, certain) > 1.5
    votes = [
        next(i for i in range(SLOTS) if i % 11 == one and i % 13 == two)
        for one, two in zip(low[clear], high[clear], strict=True)
    ]
    runs = [(slot, len(list(group))) for slot, group in itertools.groupby(votes)]
    return [slot for slot, _ in itertools.groupby(slot for slot, length in runs if length >= 2)]
