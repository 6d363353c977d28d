"""The bars a run is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from orchestrator.loadtest.tally import Figure


@dataclass(frozen=True)
class Kind:
    """An option: which value of which figure it bounds. `at_least`: from below."""

    option: str
    figure: str
    value: str
    unit: str
    at_least: bool = False


KINDS = (
    Kind("max-p95-start", "start_s", "p95", "s"),
    Kind("max-p95-first-picture", "first_picture_s", "p95", "s"),
    Kind("max-p95-sound", "sound_ms", "p95", "ms"),
    Kind("max-p95-picture", "picture_ms", "p95", "ms"),
    Kind("max-p95-skew", "skew_abs_ms", "p95", "ms"),
    Kind("max-p95-interrupt", "interrupt_ms", "p95", "ms"),
    Kind("max-p99-gap", "gap_ms", "p99", "ms"),
    Kind("max-move", "move_s", "max", "s"),
    Kind("min-p5-fps", "fps", "p5", "1/s", at_least=True),
)
FAILED = "max-failed"


class Verdict(BaseModel):
    """One bar. `value` is None, and the bar not held, when nothing was measured."""

    option: str
    bar: float
    value: float | None
    unit: str
    held: bool


def judge(bars: Mapping[str, float], figures: Mapping[str, Figure], failed: int) -> list[Verdict]:
    """Every bar that was given. No session moving is no move too slow."""
    most = bars.get(FAILED, 0)
    verdicts = [Verdict(option=FAILED, bar=most, value=failed, unit="", held=failed <= most)]
    for kind in KINDS:
        bar = bars.get(kind.option)
        if bar is None:
            continue
        figure = figures.get(kind.figure)
        value = None if figure is None else float(getattr(figure, kind.value))
        if value is None:
            held = kind.figure == "move_s"
        else:
            held = value >= bar if kind.at_least else value <= bar
        verdicts.append(Verdict(option=kind.option, bar=bar, value=value, unit=kind.unit, held=held))
    return verdicts
