"""Pauses that a text asks for: `[pause 500ms]`, `[pause 1.5s]`, and SSML's `<break time="500ms"/>`."""

from __future__ import annotations

import re

PAUSE_MS_MAX = 10_000
"""Longest pause, also of several in a row: speech that pauses for longer is two texts."""
_MARK = re.compile(
    r"\[\s{0,4}pause\s{0,4}[:=]?\s{0,4}(?P<number>\d{1,6}(?:\.\d{1,3})?)\s{0,4}(?P<unit>ms|s)\s{0,4}\]"
    r"|<\s{0,4}break(?=[\s/>])(?P<attributes>[^<>]{0,200})>(?:\s{0,4}</\s{0,4}break\s{0,4}>)?",
    re.IGNORECASE,
)
_TIME = re.compile(r"\btime\s{0,4}=\s{0,4}[\"']?\s{0,4}(\d{1,6}(?:\.\d{1,3})?)\s{0,4}(ms|s)\b", re.IGNORECASE)
_STRENGTH = re.compile(r"\bstrength\s{0,4}=\s{0,4}[\"']?\s{0,4}([a-z-]{1,8})", re.IGNORECASE)
_STRENGTHS_MS = {"none": 0, "x-weak": 100, "weak": 200, "medium": 400, "strong": 700, "x-strong": 1000}
"""SSML leaves the lengths open; a `<break/>` without any is a medium one."""


def split(text: str) -> list[tuple[str, int]]:
    """The text between its pauses, each piece with the pause after it in ms; 0 after the last where no pause ends the text.

    The first piece is empty where a pause begins the text. Pauses with nothing between them are one.
    """
    out: list[tuple[str, int]] = []
    at = 0
    for mark in _MARK.finditer(text):
        before, ms = text[at : mark.start()], _milliseconds(mark)
        if not before.strip() and out:
            out[-1] = (out[-1][0], min(PAUSE_MS_MAX, out[-1][1] + ms))
        else:
            out.append((before, ms))
        at = mark.end()
    if text[at:].strip() or not out:
        out.append((text[at:], 0))
    return out


def mark(ms: int) -> str:
    """The pause as it is written."""
    return f"[pause {ms}ms]"


def without(text: str) -> str:
    """The text without its pauses."""
    return " ".join(piece.strip() for piece, _ in split(text)).strip()


def spared(text: str, begin: int, cut: int) -> int:
    """Where to cut `text` instead of at `cut`, which may lie inside a pause: before it, or behind it where it begins the text."""
    for found in _MARK.finditer(text, begin):
        if found.start() >= cut:
            break
        if cut < found.end():
            return found.start() if found.start() > begin else found.end()
    return cut


def _milliseconds(found: re.Match[str]) -> int:
    number, unit = found["number"], found["unit"]
    if number is None:
        attributes = found["attributes"] or ""
        time = _TIME.search(attributes)
        if time is None:
            strength = _STRENGTH.search(attributes)
            return _STRENGTHS_MS.get(strength[1].lower() if strength else "medium", _STRENGTHS_MS["medium"])
        number, unit = time[1], time[2]
    return min(PAUSE_MS_MAX, round(float(number) * (1 if unit.lower() == "ms" else 1000)))
