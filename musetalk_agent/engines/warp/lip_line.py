"""The dark line in which closed lips meet, where the mesh may lie off it: under a beard by as much as half a lip.

It is a valley of light, with brighter lips above and below. Shadows and the edge of a moustache are dark on one side only.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.mouth_space import Floats

DEPTH = 4
"""Rows above and below a place within which both lips are brighter than it."""
ENOUGH = 0.04
"""A valley of this depth is as good as any: between the hairs of a beard they are deeper (logarithms of light)."""
AWAY = 0.0015
"""Cost of a row's distance from the mesh's line, in logarithms of light."""
BEND = 0.02
"""Cost of a step of a row from one column to the next, in the same."""
SEEN = 0.012
"""Median depth of the valley over the mouth's middle from which on it is believed (logarithms of light)."""


def lip_line(light: Floats, row: float, middle: NDArray[np.bool_]) -> tuple[NDArray[np.float64], Floats] | None:
    """The row (a middle, in rows) in which the lips meet in each column, and how deep the valley is there; None where none is seen.

    Args:
        light: luminance `[rows, columns]`, more than 0.
        row: where the mesh has the line.
        middle: the columns of which the line must be seen in most.
    """
    log = np.log(light)
    near = cv2.blur(log, (1, 3))
    wide = np.pad(cv2.blur(log, (1, 5)), ((DEPTH, DEPTH), (0, 0)), "edge")
    depth = np.maximum(np.minimum(wide[: -2 * DEPTH], wide[2 * DEPTH :]) - near, 0)
    rows, columns = depth.shape
    gain = np.minimum(depth, ENOUGH) - AWAY * np.abs(np.arange(rows)[:, None] + 0.5 - row)
    best, came = gain[:, 0].astype(np.float64), np.zeros((rows, columns), np.intp)
    for column in range(1, columns):
        padded = np.pad(best, 1, constant_values=-np.inf)
        ways = np.stack([padded[:-2] - BEND, padded[1:-1], padded[2:] - BEND])
        came[:, column] = ways.argmax(0) - 1
        best = ways.max(0) + gain[:, column]
    path = np.zeros(columns, np.intp)
    path[-1] = best.argmax()
    for column in range(columns - 1, 0, -1):
        path[column - 1] = path[column] + came[path[column], column]
    found: Floats = depth[path, np.arange(columns)].astype(np.float32)
    if float(np.median(found[middle])) < SEEN:
        return None
    return (path + 0.5).astype(np.float64), found
