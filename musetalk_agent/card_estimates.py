"""Estimates how many sessions a card holds from its data sheet, for planning until it is measured. No card was.

A frame takes `FLOP / (55 % of the dense half-precision peak) + bytes / (75 % of the memory's bandwidth)`: the shares at which eager
figures of others come out within a quarter (RTX 4090: 72 … 81 frames a second, RTX 3090: 41 … 51). FLOP are counted by torch; bytes
are those outside convolutions and matrix products, counted from the layers. Both are upstream's, in eager mode: what folding and
fusing take off is a reserve until a card was measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PEAK_SHARE, _BANDWIDTH_SHARE = 0.55, 0.75
_PROMISED = 0.75 * 0.9
"""The engine promises three quarters of its pace (`engines.musetalk.runner.HEADROOM`); a tenth is for the model's error."""
_FPS = 25
PACED_MOST = 16
"""Sessions that one process paces (docs/reference/performance.md), whatever its card can do."""
CPU_BASE, CPU_SESSION = 2.0, 0.3
"""Cores of an agent, and of each session at 720p: VP8 takes 0.29 of one, features and composition 0.04."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of a frame: GFLOP, and gigabytes that go through the card's memory."""

    gflop: float
    gigabytes: float


_COSTS = {"quality": _Cost(803, 2.7), "lower": _Cost(653, 2.2), "fast": _Cost(216, 0.85)}
PROFILES = tuple(_COSTS)


@dataclass(frozen=True, slots=True)
class CardModel:
    """Dense half-precision TFLOP/s (float16 in, float32 sums), TB/s, GB of memory. Makers' data sheets."""

    tflops: float
    bandwidth: float
    memory: int


CARDS = {
    "T4": CardModel(65, 0.32, 16),
    "L4": CardModel(100, 0.3, 24),  # 121 on paper, which its 72 W do not last for
    "A10": CardModel(70, 0.6, 24),
    "A10G": CardModel(70, 0.6, 24),
    "L40S": CardModel(362, 0.86, 48),
    "A100-40GB": CardModel(312, 1.55, 40),
    "A100-80GB": CardModel(312, 2.0, 80),
    "H100": CardModel(989, 3.35, 80),
    "H200": CardModel(989, 4.8, 141),
    "RTX 3060": CardModel(25.6, 0.36, 12),
    "RTX 3090": CardModel(71, 0.94, 24),
    "RTX 4090": CardModel(165, 1.0, 24),
}
"""By the names that Modal and the driver give them."""


def card_of(name: str, memory: int | None = None) -> CardModel | None:
    """The card that a driver's name, such as "NVIDIA H100 80GB HBM3", or Modal's, such as "H100:2" or "A100", means; None for one
    that is not in the table. By `memory`, in bytes, the two A100 differ."""
    plain = re.sub(r"[^A-Z0-9]+", " ", name.upper().partition(":")[0]).strip()
    if "LAPTOP" in plain or "MAX Q" in plain:  # the same name for a fraction of the power
        return None
    if "A100" in plain.split():
        small = "40GB" in plain or (memory is not None and memory < 60 << 30) or plain == "A100"
        return CARDS["A100-40GB" if small else "A100-80GB"]
    words = f" {plain} "
    return next((card for known, card in CARDS.items() if f" {known.upper()} " in words), None)


def frames_per_second(card: CardModel, profile: str = "quality") -> float:
    """Of the whole network, by the model. Raises KeyError for an unknown profile."""
    cost = _COSTS[profile]
    milliseconds = cost.gflop / (card.tflops * _PEAK_SHARE) + cost.gigabytes / (card.bandwidth * _BANDWIDTH_SHARE)
    return 1000 / milliseconds


def sessions(card: CardModel, profile: str = "quality") -> int:
    """Sessions that all speak at 25 frames a second; 0 for a card that holds none. Raises KeyError for an unknown profile."""
    return min(PACED_MOST, int(_PROMISED * frames_per_second(card, profile) / _FPS))
