"""Draws the report as SVG or PNG: the run over time, the figures as bars, the losses as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from musetalk_tools.loadtest.report import LoadReport, Point
from musetalk_tools.loadtest.viewer_metrics import Figure

Colour = str
"""#rrggbb."""
_SCALE = 2  # PNG is drawn this much larger, for sharp letters
_CAP = 0.0463  # OpenCV's letters are 21.6 pixels high at scale 1


class Canvas(Protocol):
    """Something to draw on."""

    def rect(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """A filled rectangle."""

    def line(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """A line through the points."""

    def text(self, x: float, y: float, words: str, size: float, colour: Colour) -> None:
        """Words whose baseline begins at (x, y)."""

    def save(self, path: Path) -> None:
        """Writes the file. Raises OSError."""


class SvgCanvas:
    """SVG 1.1, written by hand."""

    def __init__(self, width: int, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="system-ui, sans-serif">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def rect(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """See Canvas."""
        self._parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def line(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """See Canvas."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')

    def text(self, x: float, y: float, words: str, size: float, colour: Colour) -> None:
        """See Canvas."""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}">{escape(words)}</text>')

    def save(self, path: Path) -> None:
        """See Canvas."""
        path.write_text("\n".join([*self._parts, "</svg>\n"]))


class PngCanvas:
    """OpenCV's: its letters are ASCII only, others become the nearest."""

    def __init__(self, width: int, height: int) -> None:
        self._pixels = np.full((height * _SCALE, width * _SCALE, 3), 255, np.uint8)

    def rect(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """See Canvas."""
        corner = _point(x + width, y + height)
        cv2.rectangle(self._pixels, _point(x, y), (corner[0] - 1, corner[1] - 1), _bgr(colour), cv2.FILLED)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """See Canvas."""
        path = np.array([_point(x, y) for x, y in points], np.int32)
        cv2.polylines(self._pixels, [path], False, _bgr(colour), round(1.5 * _SCALE), cv2.LINE_AA)

    def text(self, x: float, y: float, words: str, size: float, colour: Colour) -> None:
        """See Canvas."""
        plain = words.translate(_ASCII).encode("ascii", "replace").decode()
        scale = _CAP * size * 0.72 * _SCALE
        cv2.putText(
            self._pixels, plain, _point(x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, _bgr(colour), _SCALE, cv2.LINE_AA
        )

    def save(self, path: Path) -> None:
        """See Canvas."""
        path.write_bytes(cv2.imencode(".png", self._pixels)[1].tobytes())


_ASCII = str.maketrans({"·": "|", "–": "-", "≤": "<", "≥": ">", "×": "x", "µ": "u"})


def _point(x: float, y: float) -> tuple[int, int]:
    return round(x * _SCALE), round(y * _SCALE)


def _bgr(colour: Colour) -> tuple[int, int, int]:
    return int(colour[5:7], 16), int(colour[3:5], 16), int(colour[1:3], 16)


SUFFIXES: dict[str, Callable[[int, int], Canvas]] = {".svg": SvgCanvas, ".png": PngCanvas}
_WIDTH, _PAD = 960, 24
_INK, _FAINT, _AXIS, _FILL = "#222222", "#777777", "#dddddd", "#dfe8f3"
_LINE, _TAIL, _BAR, _BAD, _GOOD = "#c2571a", "#c9dcf0", "#3b76b4", "#c0392b", "#2e7d4f"
_TIME_TOP, _TIME_HEIGHT, _ROW = 92, 130, 30
_NAME, _NOTE = 190, 400  # widths of a row's name and of its words
NAMES = {
    "start_s": "start answered",
    "first_picture_s": "first picture",
    "sound_ms": "speech to sound",
    "picture_ms": "speech to picture",
    "skew_abs_ms": "picture against sound",
    "interrupt_ms": "interrupt to silence",
    "move_s": "move to another agent",
    "gap_ms": "between pictures",
}


def draw(report: LoadReport, path: Path) -> None:
    """Writes it; the suffix chooses the format. Raises OSError, KeyError for another suffix."""
    rows = [(title, report.figures[name]) for name, title in NAMES.items() if name in report.figures]
    words = _words(report)
    bars_top = _TIME_TOP + _TIME_HEIGHT + 70
    words_top = bars_top + _ROW * len(rows) + 28
    canvas = SUFFIXES[path.suffix](_WIDTH, words_top + 20 * len(words) + 8)
    _head(canvas, report)
    _time(canvas, report.timeline, report.plan.seconds, report.sessions.wanted)
    legend = (
        "dark to the median, pale to p95, grey to the largest; each row has its own scale; last the number of values"
    )
    canvas.text(_PAD, bars_top - 14, legend, 12, _FAINT)
    for index, (title, figure) in enumerate(rows):
        _row(canvas, bars_top + _ROW * index, title, figure)
    for index, (line, colour) in enumerate(words):
        canvas.text(_PAD, words_top + 20 * index, line, 13, colour)
    canvas.save(path)


def _head(canvas: Canvas, report: LoadReport) -> None:
    plan, sessions = report.plan, report.sessions
    outcome, colour = ("within the bars", _GOOD) if report.held else ("NOT within the bars", _BAD)
    if report.cut_short:
        outcome += ", cut short"
    canvas.text(_PAD, 34, f"{sessions.wanted} sessions for {report.seconds:.0f} s", 20, _INK)
    canvas.text(_PAD + 330, 34, outcome, 16, colour)
    engine = next((each.engine for each in report.each if each.engine), plan.engine or "–")
    note = f"{plan.url} · {engine} · {plan.speech} {100 * plan.speak_share:.0f} % · {report.begun_at}"
    canvas.text(_PAD, 56, note, 12, _FAINT)
    machine = report.machine
    busy = f"load {machine.load:g}, {machine.viewer_cores:g} of them busy with viewing"
    note = f"viewers on {machine.processor}, {machine.cores} cores, {busy}"
    canvas.text(_PAD, 74, note, 12, _FAINT)


def _time(canvas: Canvas, points: list[Point], seconds: float, wanted: int) -> None:
    left, right, bottom = _PAD + 40, _WIDTH - _PAD - 40, _TIME_TOP + _TIME_HEIGHT
    span = max([seconds, *(point.at_s for point in points)])
    fastest = max([25.0, *(point.fps_mean or 0.0 for point in points)]) * 1.1

    def x(at_s: float) -> float:
        return left + (right - left) * at_s / span

    def y(share: float) -> float:
        return bottom - (_TIME_HEIGHT - 10) * share

    before = 0.0
    for point in points:
        share = point.sessions / max(1, wanted)
        canvas.rect(x(before), y(share), x(point.at_s) - x(before), bottom - y(share), _FILL)
        if point.errors:
            canvas.rect(x(point.at_s) - 3, bottom - 12, 6, 12, _BAD)
        before = point.at_s
    for fps in (0, round(fastest / 2.2), round(fastest / 1.1)):
        canvas.line([(left, y(fps / fastest)), (right, y(fps / fastest))], _AXIS)
        canvas.text(right + 8, y(fps / fastest) + 4, f"{fps}", 12, _FAINT)
    canvas.text(left - 34, y(1) + 12, f"{wanted}", 12, _FAINT)
    _curve(canvas, points, lambda p: p.fps_mean, lambda at, fps: (x(at), y(fps / fastest)), _FAINT)
    _curve(canvas, points, lambda p: p.fps_low, lambda at, fps: (x(at), y(fps / fastest)), _LINE)
    canvas.text(left, bottom + 18, "0 s", 12, _FAINT)
    canvas.text(right - 30, bottom + 18, f"{span:.0f} s", 12, _FAINT)
    legend = "area: sessions running · line: frame rate of the slowest one, in 1/s; grey: mean · red marks: errors"
    canvas.text(left + 60, bottom + 18, legend, 12, _FAINT)


def _curve(
    canvas: Canvas,
    points: list[Point],
    value: Callable[[Point], float | None],
    place: Callable[[float, float], tuple[float, float]],
    colour: str,
) -> None:
    line = [place(point.at_s, shown) for point in points if (shown := value(point)) is not None]
    if len(line) > 1:
        canvas.line(line, colour)


def _row(canvas: Canvas, top: float, title: str, figure: Figure) -> None:
    """Each row has a scale of its own: its largest value is the full width."""
    room = _WIDTH - 2 * _PAD - _NAME - _NOTE
    longest = max(figure.max, 1e-9)
    canvas.text(_PAD, top + 14, title, 13, _INK)
    for value, colour in ((figure.max, _AXIS), (figure.p95, _TAIL), (figure.p50, _BAR)):
        canvas.rect(_PAD + _NAME, top + 2, max(1.0, room * value / longest), 16, colour)
    shown = ", ".join(
        f"{name} {_number(value)}" for name, value in (("p50", figure.p50), ("p95", figure.p95), ("max", figure.max))
    )
    canvas.text(_WIDTH - _PAD - _NOTE + 14, top + 14, f"{shown} {figure.unit} · {figure.count}", 13, _INK)


def _words(report: LoadReport) -> list[tuple[str, str]]:
    lost, done = report.losses, report.happened
    shown = "" if lost.marks_shown is None else f", {lost.marks_shown} seen"
    lines = [
        (f"{lost.marks_said} marks of speech sent, {lost.marks_heard} heard{shown}", _INK),
        (
            f"{lost.frames} pictures, {lost.frames_missing} missing; {lost.packets_lost} of {lost.packets} packets lost; "
            f"{lost.freezes} freezes",
            _INK,
        ),
        (
            f"{done.utterances} utterances, {done.interrupts} interrupted; {done.moves} moves; reconnects: "
            f"{done.audio_reconnects} of /audio, {done.viewer_reconnects} of viewers",
            _INK,
        ),
    ]
    agents = report.services.agents
    if agents:
        figures = ", ".join(f"{name} {_number(value)}" for name, value in agents.items())
        lines.append((f"agents: {figures}"[:150], _INK))
    if report.errors:
        lines.append(("errors: " + ", ".join(f"{code} {many}" for code, many in report.errors.items()), _BAD))
    for bar in report.bars:
        value = "nothing measured" if bar.value is None else f"{_number(bar.value)} {bar.unit}".rstrip()
        shown = f"--{bar.option} {bar.bar:g}: {value}, {'held' if bar.held else 'NOT held'}"
        lines.append((shown, _GOOD if bar.held else _BAD))
    return lines


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
