"""Fits colour and light of a generated face to the frame around it.

The network's decoder tints what it makes by a few levels, and not evenly. The difference to the idle frame is looked at along the
edge of the mask, where both show the same skin. A plane of it (offset and slopes, for each channel) is added to the patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

Floats = NDArray[np.float32]

EDGE = (2, 110)
"""Values of the mask, exclusive, between which a pixel counts as its edge."""
GRID = 8
"""Both pictures are averaged over `GRID` × `GRID` pixels before they are compared."""
EVERY = 3
"""The fit is made anew every so many frames: light changes slowly."""
FEWEST = 12
"""Places with fewer of them are not fitted: a mask that is nearly empty."""
OUTLIER = 6.0
"""Levels from the plane at which a place counts a quarter: the jaw that has dropped is no tint."""
ROUNDS = 3
MOST = 30.0
"""Levels that are added or taken at most."""
KEEPS = 0.6
"""Share of the last plane that is kept when a new one is fitted, so that the fit does not flicker."""
_TINY = 24  # side of the picture in which a plane is drawn before it is enlarged


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a mask's edge is: index into the averaged picture, and rows `[n, 3]` of 1, x, y, both -1 … 1."""

    index: NDArray[np.intp]
    basis: Floats


class ColourFit:
    """The planes of one session, in the order of its frames. One thread at a time."""

    def __init__(self) -> None:
        self._places: dict[int, _Places] = {}
        self._plane: Floats | None = None
        self._frames = 0

    def reset(self) -> None:
        """The next plane is taken as it is found."""
        self._plane = None
        self._frames = 0

    def fitted(self, idle_index: int, patch: Pixels, idle: Pixels, mask: Pixels, *, steady: bool = True) -> Pixels:
        """`patch` with the plane added; all uint8, `patch` and `idle` BGR `[h, w, 3]`, `mask` `[h, w]` of the idle frame.

        `steady`: it follows the session's last frame. One that is not leaves no trace.
        """
        last = self._plane if steady else None
        self._frames += steady
        if last is not None and self._frames % EVERY != 1:
            return _added(patch, last)
        found = self._found(idle_index, patch, idle, mask)
        if found is None:
            plane = last
        else:
            plane = found if last is None else np.asarray(last * KEEPS + found * (1 - KEEPS), np.float32)
        if steady:
            self._plane = plane
        return patch if plane is None else _added(patch, plane)

    def _found(self, idle_index: int, patch: Pixels, idle: Pixels, mask: Pixels) -> Floats | None:
        """The plane, float32 `[3 (1, x, y), 3 (BGR)]`; None where there is too little to see."""
        places = self._places.get(idle_index)
        if places is None:
            places = self._places[idle_index] = _edge(mask)
        if len(places.index) < FEWEST:
            return None
        difference = _averaged(idle).reshape(-1, 3)[places.index] - _averaged(patch).reshape(-1, 3)[places.index]
        return _plane(places.basis, difference)


def _averaged(picture: Pixels) -> Floats:
    cols, rows = max(1, picture.shape[1] // GRID), max(1, picture.shape[0] // GRID)
    whole = picture[: GRID * rows, : GRID * cols]
    return cv2.resize(whole, (cols, rows), interpolation=cv2.INTER_AREA).astype(np.float32)


def _edge(mask: Pixels) -> _Places:
    small = _averaged(mask)
    y, x = np.nonzero((small > EDGE[0]) & (small < EDGE[1]))
    across, down = (2 * GRID * (at + 0.5) / size - 1 for at, size in ((x, mask.shape[1]), (y, mask.shape[0])))
    basis = np.stack([np.ones(len(x)), across, down], 1)
    cols = small.shape[1]
    return _Places(np.asarray(y * cols + x, np.intp), basis.astype(np.float32))


def _plane(basis: Floats, difference: Floats) -> Floats:
    """The plane through most of the differences `[n, 3]`: those far from it count less, by how far they are in any channel."""
    plane = np.zeros((3, 3), np.float32)
    plane[0] = np.median(difference, 0)
    for _ in range(ROUNDS):
        away = np.abs(difference - basis @ plane).max(1)
        weighted = basis / ((1 + (away / OUTLIER) ** 2) ** 2)[:, None]
        normal = weighted.T @ basis + np.eye(3, dtype=np.float32) * 1e-3 * len(basis)
        plane = np.linalg.solve(normal, weighted.T @ difference).astype(np.float32)
    return np.clip(plane, -MOST, MOST)


def _added(patch: Pixels, plane: Floats) -> Pixels:
    along = (2 * np.arange(_TINY, dtype=np.float32) + 1) / _TINY - 1
    tiny = plane[0] + along[None, :, None] * plane[1] + along[:, None, None] * plane[2]
    size = patch.shape[1], patch.shape[0]
    out = patch
    for part, put in (
        (tiny, cv2.add),
        (-tiny, cv2.subtract),
    ):  # sums of bytes are several times as fast as of other numbers
        if (part > 0).any():
            levels = np.rint(np.maximum(part, 0)).astype(np.uint8)
            out = cast("Pixels", put(out, cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR)))
    return out
