"""Many values in bounded memory: a histogram fine enough to tell percentiles."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

_FARTHEST = 1_000_000  # steps from zero; what lies beyond counts as this far


class Figure(BaseModel):
    """What is told of a figure: how many values there were, and how they lie. Percentiles are nearest ranks."""

    unit: str
    count: int
    mean: float
    min: float
    p5: float
    p50: float
    p95: float
    p99: float
    max: float


class Tally:
    """Values, each rounded to a whole number of `step`s."""

    def __init__(self, unit: str, step: float) -> None:
        self._unit, self._step = unit, step
        self._bins: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._bins.total()

    def add(self, value: float) -> None:
        """One more."""
        self._bins[round(max(-_FARTHEST, min(_FARTHEST, value / self._step)))] += 1

    def figure(self) -> Figure | None:
        """All of them; None when there are none."""
        bins = sorted(self._bins.items())
        if not bins:
            return None
        count = self._bins.total()
        low, p5, p50, p95, p99, high = (self._rank(bins, round(share * (count - 1))) for share in _SHARES)
        mean = self._value(sum(step * many for step, many in bins) / count)
        return Figure(unit=self._unit, count=count, mean=mean, min=low, p5=p5, p50=p50, p95=p95, p99=p99, max=high)

    def _rank(self, bins: list[tuple[int, int]], rank: int) -> float:
        for step, many in bins:
            rank -= many
            if rank < 0:
                return self._value(step)
        return self._value(bins[-1][0])

    def _value(self, steps: float) -> float:
        return round(steps * self._step, 6)


_SHARES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
