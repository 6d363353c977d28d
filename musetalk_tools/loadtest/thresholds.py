"""Thresholds that a run must hold, and the options of `musetalk-orchestrator loadtest`.

Imports nothing heavy: every command builds the whole parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from musetalk_tools.loadtest.viewer_metrics import Figure


@dataclass(frozen=True)
class Threshold:
    """An option: which value of which figure it bounds. `at_least`: from below."""

    option: str
    figure: str
    value: str
    unit: str
    at_least: bool = False


THRESHOLDS = (
    Threshold("max-p95-start", "start_s", "p95", "s"),
    Threshold("max-p95-first-picture", "first_picture_s", "p95", "s"),
    Threshold("max-p95-sound", "sound_ms", "p95", "ms"),
    Threshold("max-p95-picture", "picture_ms", "p95", "ms"),
    Threshold("max-p95-skew", "skew_abs_ms", "p95", "ms"),
    Threshold("max-p95-interrupt", "interrupt_ms", "p95", "ms"),
    Threshold("max-p99-gap", "gap_ms", "p99", "ms"),
    Threshold("max-move", "move_s", "max", "s"),
    Threshold("min-p5-fps", "fps", "p5", "1/s", at_least=True),
)
FAILED = "max-failed"


class ThresholdResult(BaseModel):
    """One bar. `value` is None, and the bar not held, when nothing was measured."""

    option: str
    bar: float
    value: float | None
    unit: str
    held: bool


def judge(bars: Mapping[str, float], figures: Mapping[str, Figure], failed: int) -> list[ThresholdResult]:
    """Every bar that was given. No session moving is no move too slow."""
    most = bars.get(FAILED, 0)
    verdicts = [ThresholdResult(option=FAILED, bar=most, value=failed, unit="", held=failed <= most)]
    for kind in THRESHOLDS:
        bar = bars.get(kind.option)
        if bar is None:
            continue
        figure = figures.get(kind.figure)
        value = None if figure is None else float(getattr(figure, kind.value))
        if value is None:
            held = kind.figure == "move_s"
        else:
            held = value >= bar if kind.at_least else value <= bar
        verdicts.append(ThresholdResult(option=kind.option, bar=bar, value=value, unit=kind.unit, held=held))
    return verdicts


_EPILOG = """exit code: 0 all bars held, 1 one did not, 2 wrong use or nothing could be started, 130 ended by Ctrl-C or SIGTERM.
What is measured, and how: docs/how-to/loadtest.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `loadtest`."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--sessions", type=int, required=True, metavar="N", help="sessions at once, each with a viewer")
    add("--minutes", type=float, required=True, metavar="M", help="how long they run, after the ramp")
    add("--url", default="http://127.0.0.1:8080", help="the orchestrator (default: %(default)s)")
    add("--api-key", metavar="KEY", help="a key of it (default: the first of ORCHESTRATOR_API_KEY)")
    add(
        "--engine", help="engine of the sessions; with pattern picture and skew are measured too (default: the agent's)"
    )
    add("--avatar-id", metavar="ID", help="avatar of the sessions (default: demo)")
    add("--speech", type=Path, metavar="FILE.wav", help="what they say, 16-bit PCM (default: test tones)")
    add(
        "--speak-share", type=float, default=0.5, metavar="X", help="part of the time they speak (default: %(default)s)"
    )
    add(
        "--interrupt-every",
        type=int,
        default=3,
        metavar="N",
        help="interrupt each N-th utterance, 0: none (default: %(default)s)",
    )
    add("--ramp", type=float, default=0.0, metavar="S", help="seconds over which they start (default: all at once)")
    add("--json", metavar="FILE", help="write the report there, - for standard output")
    add("--picture", type=Path, metavar="FILE", help="draw it: .svg or .png")
    add("--yes", action="store_true", help="go on although it is more than this machine's cores bear")
    bars = parser.add_argument_group("bars")
    bars.add_argument(f"--{FAILED}", type=int, default=0, metavar="N", help="sessions that may fail (default: 0)")
    for kind in THRESHOLDS:
        bars.add_argument(f"--{kind.option}", type=float, metavar=kind.unit.upper().replace("1/S", "FPS"))
