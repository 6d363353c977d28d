"""Speech that says where it is: every 100 ms two tones of their own, so that what is lost or doubled is known at any receiver."""

from __future__ import annotations

import numpy as np

from musetalk_agent.media import Pcm

SLOT_S = 0.1
LOW = 400 + 60 * np.arange(11)
HIGH = 1400 + 80 * np.arange(13)
SLOTS = len(LOW) * len(HIGH)
_WINDOW_S, _HOP_S = 0.05, 0.01


def spoken_code(slots: int, rate: int) -> Pcm:
    """Slot `i` sounds tones `i mod 11` and `i mod 13`; at most 143 slots."""
    assert slots <= SLOTS
    index = np.arange(round(slots * SLOT_S * rate)) * round(1 / SLOT_S) // rate
    t = np.arange(len(index)) / rate
    wave = np.sin(2 * np.pi * LOW[index % 11] * t) + np.sin(2 * np.pi * HIGH[index % 13] * t)
    return (7_000 * wave).astype(np.int16)


def _strongest(window: np.ndarray, tones: np.ndarray, rate: int) -> tuple[int, float]:
    t = np.arange(len(window)) / rate
    power = np.abs(np.exp(-2j * np.pi * tones[:, None] * t) @ (window * np.hanning(len(window))))
    order = np.argsort(power)
    return int(order[-1]), float(power[order[-1]] / max(1e-9, power[order[-2]]))


def heard_slots(wave: np.ndarray, rate: int) -> list[int]:
    """Slots in the order in which they were heard, each once while it lasts; a slot counts from 30 ms on."""
    wave = wave.astype(float) / max(1.0, float(np.abs(wave).max(initial=0)))
    votes: list[int] = []
    size, hop = round(_WINDOW_S * rate), round(_HOP_S * rate)
    for at in range(0, len(wave) - size, hop):
        window = wave[at : at + size]
        if np.sqrt(np.mean(window**2)) < 0.1:
            continue
        (low, sure), (high, certain) = (_strongest(window, tones, rate) for tones in (LOW, HIGH))
        if min(sure, certain) > 1.5:
            votes.append(next(i for i in range(SLOTS) if i % 11 == low and i % 13 == high))
    runs: list[tuple[int, int]] = []
    for slot in votes:
        if runs and runs[-1][0] == slot:
            runs[-1] = slot, runs[-1][1] + 1
        else:
            runs.append((slot, 1))
    kept = [slot for slot, length in runs if length >= 3]
    return [slot for i, slot in enumerate(kept) if i == 0 or kept[i - 1] != slot]
