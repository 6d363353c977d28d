"""Lower teeth below what was found to be the inside of a wide open mouth.

The mesh may lie as much as a lip's height too high on a laugh under a beard: its lower lip is then the lower row of teeth. A tooth
is known by what is under it: it is much less red than the lip that begins there. Skin has no such lip below it, and between the
inside and a gleam on a lip there is lip.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.mouth_space import Floats
from musetalk_agent.media_types import Pixels

REACH = 0.11
"""How far under the inside that was found teeth are looked for (eye distances)."""
LIP = 0.012, 0.08
"""How far under a tooth its lip is looked for (eye distances)."""
STEP = 0.004
"""Row height of the search (eye distances)."""
REDDER = 0.18
"""By how much the lip under a tooth is redder than it (log of red over green)."""
BRIGHT = 0.75
"""Share of that lip's luminance that a tooth has at least: what is darker is the inside itself."""
LIT = 0.5
"""Share of a tooth's luminance that the lip under it has at least: what is darker is hair, or the inside."""
NO_LIP = 0.9, 0.1
"""What lies between the inside that was found and a row of teeth is darker than this share of the lip, or this much less red:
tongue and gum are, and a lip with a gleam on it is not."""
BESIDE = 0.012
"""A row that begins as near to the inside as this belongs to it whatever lies between (eye distances)."""
MISSED = 0.04
"""Where the lowest teeth are not this far under the edge, it was right: a blurred edge looks like a little more of a tooth."""
THICK, ACROSS = 0.012, 10
"""Least height of a row of teeth (eye distances), and least width in columns."""
GREY = np.array([0.114, 0.587, 0.299], np.float32)


def lowered(looked: Callable[[Floats], Pixels], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower edge of the inside, `v` per column, moved below the rows of teeth that lie under `bottom`.

    Args:
        looked: BGR pixels `[rows, columns]` at places `v` `[rows, columns]` (eye distances).
        bottom: the edge that was found, `v` per column.
    """
    rows = np.arange(-BESIDE, REACH + LIP[1], STEP, dtype=np.float32)[:, None]
    bgr = cv2.blur(looked((bottom + rows).astype(np.float32)).astype(np.float32), (3, 3)) + 6
    light = np.asarray(bgr @ GREY, np.float32)
    red: Floats = np.log(bgr[..., 2] / bgr[..., 1])
    lip_red, lip_light = _under(red, light)
    pale = (red < lip_red - REDDER) & (light > BRIGHT * lip_light) & (rows < REACH)
    joined = cv2.morphologyEx(pale.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 7), np.uint8))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((2, 3), np.uint8))
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    below = np.zeros(bottom.shape)
    for k in range(1, count):
        row = labels == k
        row &= red < (lip_red + float(np.quantile(red[row], 0.2))) / 2
        columns = np.flatnonzero(row.any(0))
        first, last = row.argmax(0)[columns], len(row) - 1 - row[::-1].argmax(0)[columns]
        if len(columns) < ACROSS or float(np.median(last + 1 - first)) * STEP < THICK:
            continue
        begins = float(np.median(rows[first, 0]))
        between = (rows > 0) & (np.arange(len(rows))[:, None] < first)
        lip = lip_red[first, columns], lip_light[first, columns]
        if begins < BESIDE or not between.any() or _no_lip(red[:, columns], light[:, columns], between, *lip):
            below[columns] = np.maximum(below[columns], rows[last, 0] + STEP)
    missed = below[below > 0]
    return bottom + below if missed.size and float(np.quantile(missed, 0.9)) > MISSED else bottom


def _under(red: Floats, light: Floats) -> tuple[Floats, Floats]:
    """The redness and the luminance of the reddest pixel that may be the lip under each."""
    rows = len(red)
    best, bright = np.full_like(red, -1), np.full_like(light, 255)
    for way in range(round(LIP[0] / STEP), min(round(LIP[1] / STEP), rows - 1) + 1):
        part = best[: rows - way], bright[: rows - way]
        redder = (red[way:] > part[0]) & (light[way:] > LIT * light[: rows - way])
        np.copyto(part[0], red[way:], where=redder)
        np.copyto(part[1], light[way:], where=redder)
    return best, bright


def _no_lip(red: Floats, light: Floats, where: NDArray[np.bool_], lip_red: Floats, lip_light: Floats) -> bool:
    """Whether the pixels `where` are no part of a lip whose redness and luminance are known per column."""
    darker = float(np.median(light[where])) < NO_LIP[0] * float(np.quantile(lip_light, 0.75))
    return darker or float(np.median((lip_red - red)[where])) > NO_LIP[1]
