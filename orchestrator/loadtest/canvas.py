"""Rectangles, lines and words, as SVG or as PNG: all that the report's picture needs. Pixels, from the top left."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

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
