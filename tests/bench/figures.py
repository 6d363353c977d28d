"""One JSON line a figure: value, bar, whether it held, and the machine."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@functools.cache
def machine() -> str:
    """Processor, cores, system."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


@dataclass(frozen=True)
class Figure:
    """A measured value beside its bar. `ratio` is value ÷ bar for limits from above, bar ÷ value from below: ≤ 1 holds."""

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    at_least: bool = False
    note: str = ""

    def line(self) -> str:
        """The JSON line."""
        row: dict[str, Any] = {
            "figure": self.name,
            "value": None if self.value is None else round(self.value, 3),
            "unit": self.unit,
        }
        if self.bar is not None and self.value is not None:
            if self.at_least:
                ratio = self.bar / self.value if self.value else math.inf
            else:
                ratio = self.value / self.bar if self.bar else math.inf if self.value > 0 else 0.0
            row |= {
                "bar": f"{'>=' if self.at_least else '<='} {self.bar:g}",
                "ratio": round(ratio, 3) if math.isfinite(ratio) else None,
                "held": ratio <= 1,
            }
        if self.note:
            row["note"] = self.note
        return json.dumps(row | {"machine": machine()}, ensure_ascii=False)


def percentile(values: Sequence[float], q: float) -> float | None:
    """Percentile, or None of nothing."""
    return float(np.percentile(values, q)) if len(values) else None


def pairs(events: Sequence[float], others: Sequence[float], within: float) -> list[tuple[float, float]]:
    """Each event with the nearest other one, none farther than `within` seconds."""
    found = []
    for event in events:
        nearest = min(others, key=lambda t: abs(t - event), default=None)
        if nearest is not None and abs(nearest - event) <= within:
            found.append((event, nearest))
    return found
