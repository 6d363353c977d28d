"""A sheet of a film's worst frames: a row for each measure that failed on a face; when none did, for each with a worst frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from musetalk_agent.judge.film_report import MEASURES, FaceReport, FilmReport, Verdict
from musetalk_agent.measure.lip_measures import video_frames
from musetalk_agent.media_types import Pixels

_TILE = 200
_LABEL = 22
_COLUMNS = 4
_ROWS_MOST = 24
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class _Row:
    text: str
    times: tuple[float, ...]


def draw_sheet(report: FilmReport, film: Path, target: Path) -> None:
    """Reads the film once more and writes a PNG of its worst frames, whole and small.

    Raises:
        VideoUnreadable: the film cannot be read.
        OSError: the sheet cannot be written.
    """
    rows = _rows(report)
    wanted = sorted({time for row in rows for time in row.times})
    tiles = _tiles(film, wanted)
    parts = [_drawn(row, tiles) for row in rows] or [_label(f"{report.film.name}: no frame to show")]
    written, data = cv2.imencode(".png", np.vstack(parts))
    if not written:
        raise OSError(None, "the picture cannot be encoded", str(target))
    target.write_bytes(data.tobytes())


def _rows(report: FilmReport) -> list[_Row]:
    failed = [row for face in report.faces for row in _rows_of(face, failed=True)]
    found = failed or [row for face in report.faces for row in _rows_of(face, failed=False)]
    return found[:_ROWS_MOST]


def _rows_of(face: FaceReport, *, failed: bool) -> list[_Row]:
    rows = []
    for name in MEASURES:
        measure = face.measures[name]
        if (measure.verdict is Verdict.FAILED) != failed:
            continue
        times = measure.worst
        if not times and failed:  # what has no frame of its own: the lag
            times = tuple(np.linspace(face.first_s, face.last_s, _COLUMNS).tolist())
        if times:
            value = "" if measure.value is None else f" {measure.value:.3g}"
            bar = "" if measure.bar is None else f" (bar {measure.bar:.3g})"
            rows.append(_Row(f"face {face.number}: {name}{value}{bar}", times[:_COLUMNS]))
    return rows


def _tiles(film: Path, wanted: list[float]) -> dict[float, Pixels]:
    """The last frame that begins at or before each time, small; times ascend."""
    tiles: dict[float, Pixels] = {}
    shown: Pixels | None = None
    at = 0
    for time, picture in video_frames(film):
        while at < len(wanted) and time > wanted[at] + 1e-6:
            tiles[wanted[at]] = _small(picture if shown is None else shown)
            at += 1
        if at == len(wanted):
            return tiles
        shown = picture
    for time in wanted[at:] if shown is not None else []:
        tiles[time] = _small(shown)
    return tiles


def _small(picture: Pixels | None) -> Pixels:
    assert picture is not None
    scale = _TILE / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile = np.zeros((_TILE, _TILE, 3), np.uint8)
    top, left = (_TILE - small.shape[0]) // 2, (_TILE - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def _drawn(row: _Row, tiles: dict[float, Pixels]) -> Pixels:
    line = np.zeros((_TILE, _TILE * _COLUMNS, 3), np.uint8)
    for column, time in enumerate(row.times):
        tile = tiles[time].copy()
        cv2.putText(tile, f"{time:.2f} s", (4, _TILE - 6), _FONT, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        line[:, column * _TILE : (column + 1) * _TILE] = tile
    return np.vstack([_label(row.text), line])


def _label(text: str) -> Pixels:
    strip = np.full((_LABEL, _TILE * _COLUMNS, 3), 60, np.uint8)
    cv2.putText(strip, text, (6, _LABEL - 7), _FONT, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
