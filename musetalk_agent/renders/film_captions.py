"""Captions of a film, as SRT and as WebVTT, of its words (`known_speech`)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from musetalk_agent.protocol.renders import CAPTION_SUFFIXES
from musetalk_agent.renders.known_speech import FilmWord

_LINE, _LINES = 42, 2
"""Characters of a line, and lines shown at once: what is usual (Netflix's and the BBC's guides)."""
_LONGEST_S, _SHORTEST_S = 7.0, 1.0
_PAUSE_S = 0.7
"""A pause after which other words are shown."""


@dataclass(frozen=True, slots=True)
class FilmCaption:
    """What is shown from one second to another, in lines."""

    lines: tuple[str, ...]
    begin: float
    end: float


def captions(words: Sequence[FilmWord], film_s: float) -> list[FilmCaption]:
    """Groups words into captions of at most two lines; what is heard after the film's end is left out."""
    groups: list[list[FilmWord]] = []
    for word in words:
        text = " ".join(word.text.split())
        if not text or word.begin >= film_s:
            continue
        heard = FilmWord(text, word.begin, word.end)
        if groups and _goes_with(groups[-1], heard):
            groups[-1].append(heard)
        else:
            groups.append([heard])
    found: list[FilmCaption] = []
    for k, group in enumerate(groups):
        after = groups[k + 1][0].begin if k + 1 < len(groups) else film_s
        end = min(max(group[-1].end, group[0].begin + _SHORTEST_S), max(after, group[0].begin + 0.1), film_s)
        found.append(FilmCaption(tuple(_lines(group)), group[0].begin, end))
    return found


def _goes_with(group: list[FilmWord], word: FilmWord) -> bool:
    last = group[-1]
    if word.begin - last.end > _PAUSE_S or word.end - group[0].begin > _LONGEST_S or last.text[-1] in ".!?…。！？":
        return False
    return len(_lines([*group, word])) <= _LINES


def _lines(group: Sequence[FilmWord]) -> list[str]:
    lines: list[str] = []
    for word in group:
        if lines and len(lines[-1]) + 1 + len(word.text) <= _LINE:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def srt(shown: Sequence[FilmCaption]) -> str:
    """SubRip."""
    parts = [
        f"{number}\n{_time(each.begin, ',')} --> {_time(each.end, ',')}\n" + "\n".join(each.lines) + "\n"
        for number, each in enumerate(shown, 1)
    ]
    return "\n".join(parts)


def vtt(shown: Sequence[FilmCaption]) -> str:
    """WebVTT (W3C)."""
    parts = [
        f"{_time(each.begin, '.')} --> {_time(each.end, '.')}\n"
        + "\n".join(html.escape(line, quote=False) for line in each.lines)
        + "\n"
        for each in shown
    ]
    return "\n".join(["WEBVTT\n", *parts])


def write_captions(shown: Sequence[FilmCaption], folder: Path) -> None:
    """Writes `result.srt` and `result.vtt`, each whole. Raises OSError."""
    for suffix, text in zip(CAPTION_SUFFIXES, (srt(shown), vtt(shown)), strict=True):
        made = folder / f".captions.{suffix}"
        made.write_text(text, "utf-8")
        made.replace(folder / f"result.{suffix}")


def _time(seconds: float, comma: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{comma}{ms % 1000:03d}"
