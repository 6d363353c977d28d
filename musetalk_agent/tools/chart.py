"""A bar chart drawn with OpenCV: all that the tools need of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.media import Pixels

_WIDTH, _ROW, _HEAD, _LEFT, _RIGHT, _PAD = 1000, 44, 60, 170, 400, 20
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _BAR, _TAIL = (40, 40, 40), (180, 130, 60), (225, 205, 175)


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: `value` is drawn solid, `high` (≥ 0) pale behind it, `note` is written to the right. ASCII only."""

    name: str
    value: float
    high: float
    note: str


def bars(title: str, rows: Sequence[Bar]) -> Pixels:
    """The chart, uint8 BGR. All bars share one scale that begins at 0."""
    height = _HEAD + _ROW * len(rows) + _PAD
    picture = np.full((height, _WIDTH, 3), 255, np.uint8)
    cv2.putText(picture, title, (_PAD, 36), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
    longest = max((max(row.value, row.high) for row in rows), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    for index, row in enumerate(rows):
        top = _HEAD + index * _ROW
        for length, colour in ((row.high, _TAIL), (row.value, _BAR)):
            right = _LEFT + max(1, round(length * scale))
            cv2.rectangle(picture, (_LEFT, top + 6), (right, top + _ROW - 10), colour, cv2.FILLED)
        baseline = top + _ROW // 2 + 4
        cv2.putText(picture, row.name, (_PAD, baseline), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
        cv2.putText(picture, row.note, (_WIDTH - _RIGHT + 12, baseline), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
    return picture
