"""Captions of a film: as SRT and WebVTT files of its words (`known_speech`), or drawn into its frames as white letters with a dark
edge at the bottom."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from musetalk_agent.media_types import Pixels, VideoFrame
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.renders import CAPTION_SUFFIXES
from musetalk_agent.renders.film_parts import Colours
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


_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf", "Arial Unicode.ttf")
"""Looked for where fonts are installed, in this order; after them Pillow's own, which has the letters of English."""
_HEIGHT, _LEAST_PX = 0.05, 12
"""Of a letter, by the picture's height, and in pixels at least: the BBC's guide has a line of 1/15 of the height, of two."""
_WIDEST = 0.92
"""Of a line, by the picture's width: longer ones get smaller letters."""
_BOTTOM = 0.06
"""Free below the last line, by the picture's height: the safe area of EBU R 95."""
_EDGE = 0.09
"""Of the dark edge, by the letters' height."""
Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class _Drawn:
    """A caption on a picture: its first row, how much it covers there (0 … 1), and the share of white in that (0 … 1)."""

    top: int
    cover: NDArray[np.float32]
    white: NDArray[np.float32]


class BurnedCaptions:
    """Draws a film's captions.

    Args:
        shown: in their order.
        seconds: when a frame is shown, by its number.
        colours: of the film's planes.
        font: file of the letters' font; None for one that is installed.

    Raises ProblemError `captions_unavailable`: no font here has all of their letters.
    """

    def __init__(
        self, shown: Sequence[FilmCaption], seconds: Callable[[int], float], colours: Colours, font: Path | None = None
    ) -> None:
        self._shown, self._seconds = shown, seconds
        self._begins = [each.begin for each in shown]
        self._levels = (0, 255) if colours.range == 2 else (16, 235)
        letters = font_for({letter for each in shown for line in each.lines for letter in line}, font)
        self._drawn = lru_cache(maxsize=4)(lambda lines, width, height: _draw(lines, width, height, letters))

    def on(self, frame: VideoFrame, number: int) -> VideoFrame:
        """Frame `number` of the film with the caption that is shown then. Blocks."""
        at = self._seconds(number)
        found = bisect_right(self._begins, at) - 1
        if found < 0 or at >= self._shown[found].end:
            return frame
        drawn = self._drawn(self._shown[found].lines, frame.width, frame.height)
        return _laid(frame, drawn, *self._levels)


def font_for(letters: set[str], chosen: Path | None = None) -> Font:
    """A font that has all letters: the one in the file `chosen`, else the first of those that are installed, else Pillow's.

    Raises ProblemError `captions_unavailable` where none has, or the file is no font.
    """
    lacking = ""
    for font in _fonts(chosen):
        lacking = _lacking(font, letters)
        if not lacking:
            return font
    raise ProblemError(
        ErrorCode.CAPTIONS_UNAVAILABLE,
        f"No font here has the letter {lacking!r} of the captions; set CAPTION_FONT to the file of one that has, or leave "
        "burn_captions out.",
        value=lacking,
    )


def _fonts(chosen: Path | None) -> Iterator[Font]:
    if chosen is not None:
        try:
            yield ImageFont.truetype(chosen, 32)
        except OSError as error:
            raise ProblemError(
                ErrorCode.CAPTIONS_UNAVAILABLE,
                f"CAPTION_FONT: {chosen} is no font that can be read.",
                value=str(chosen),
            ) from error
        return
    for name in _FONTS:
        try:
            yield ImageFont.truetype(name, 32)
        except OSError:
            continue
    own = ImageFont.load_default(32)
    if isinstance(own, ImageFont.FreeTypeFont):  # else Pillow was built without FreeType
        yield own


def _lacking(font: Font, letters: set[str]) -> str:
    """A letter that the font shows as it shows those that no font has; empty for none."""
    unknown = bytes(font.getmask("\U0010ffff"))
    for letter in sorted(letters):
        if letter.strip() and bytes(font.getmask(letter)) == unknown:
            return letter
    return ""


def _draw(lines: tuple[str, ...], width: int, height: int, font: Font) -> _Drawn:
    text = "\n".join(lines)
    size = max(_LEAST_PX, round(_HEIGHT * height))
    while True:
        sized, edge = font.font_variant(size=size), max(1, round(_EDGE * size))
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
            (0, 0), text, sized, align="center", stroke_width=edge
        )
        if right - left <= _WIDEST * width or size <= _LEAST_PX:
            break
        size = max(_LEAST_PX, min(size - 1, int(size * _WIDEST * width / (right - left))))
    rows = int(bottom - top) + 2 & ~1
    first = max(0, round(height * (1 - _BOTTOM)) - rows) & ~1
    rows = min(rows, height - first)
    place = (width - (right - left)) / 2 - left, -top
    cover, white = (_ink(text, sized, place, (width, rows), stroke_width=stroke) for stroke in (edge, 0))
    return _Drawn(first, cover, np.minimum(white, cover))


def _ink(
    text: str, font: Font, place: tuple[float, float], size: tuple[int, int], stroke_width: int
) -> NDArray[np.float32]:
    image = Image.new("L", size)
    ImageDraw.Draw(image).multiline_text(place, text, 255, font, align="center", stroke_width=stroke_width)
    return np.asarray(image, np.float32) / np.float32(255)


def _laid(frame: VideoFrame, drawn: _Drawn, black: int, white: int) -> VideoFrame:
    """The frame with a caption over it, alpha and all. The planes are copied."""
    height, width = frame.height, frame.width
    planes = frame.i420.copy()
    luma = planes[: height * width].reshape(height, width)
    rows = slice(drawn.top, drawn.top + len(drawn.cover))
    ink = black * (drawn.cover - drawn.white) + white * drawn.white
    luma[rows] = _over(luma[rows], drawn.cover, ink)
    half = np.asarray(
        cv2.resize(drawn.cover, (width // 2, len(drawn.cover) // 2), interpolation=cv2.INTER_AREA), np.float32
    )
    for chroma in planes[height * width :].reshape(2, height // 2, width // 2):
        part = chroma[drawn.top // 2 : drawn.top // 2 + len(half)]
        part[:] = _over(part, half, 128 * half)
    alpha = frame.alpha
    if alpha is not None:
        alpha = alpha.copy()
        alpha[rows] = _over(alpha[rows], drawn.cover, 255 * drawn.cover)
    return replace(frame, i420=planes, alpha=alpha)


def _over(below: Pixels, cover: NDArray[np.float32], ink: NDArray[np.float32]) -> Pixels:
    return np.asarray(np.rint(below * (1 - cover) + ink), np.uint8)
