"""Confidence in the face mesh of a frame: where the mesh is unsure of a face, the mouth moves less, so that it does not tear.

What counts is the mesh's own belief in the face, how much it trembles against the frames beside it, how far it lies from a mesh
that begins at the detector's box anew, and how far the head is turned.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LEAST = 0.4
"""How far a mouth moves at least, as a share of its way."""
BELIEF = 8.0, 18.0
"""The mesh's logit at which nothing of the rest is trusted, and from which on all is. Talkers from the front have 40 to 54, heads
turned by 30° 18 to 35, a hand over half of a face 9 to 12."""
TREMBLE = 0.024, 0.06
"""The same for how far the jaw's points are from the middle of where they were and will be, in widths of the face (from most to
least trusted). Talkers have 0.002, and 0.015 in one frame of fifty; heads that turn by 80° in a second 0.02."""
APART = 0.03, 0.10
"""The same for the mean distance of the mesh from the detector's, in widths of the face."""
TURNED = np.radians(42.0), np.radians(65.0)
"""The same for the head's turn."""
HELD, EASED = 2, 4.0
"""Over how many frames beside an unsure one it counts as unsure too, and the standard deviation over which amplitudes change
(frames): a mouth must not pump."""
UNSURE = 0.8
"""Frames that are trusted less than this are reported."""
JAW = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
"""Mesh points of the lower edge of the face."""


def trust_of(scores: Floats, raw: Floats, turns: Floats, apart: dict[int, float]) -> Floats:
    """How far each frame's mouth may move, float32 `[n]`, `LEAST` … 1.

    Args:
        scores: float32 `[n]`, the mesh's logits; no number where no face is seen, which counts as nothing said.
        raw: float32 `[n, 468, 2]`, the mesh before it is smoothed, in pixels.
        turns: float32 `[n]`, how far the head is turned (radians).
        apart: by frame, how far the followed mesh is from the one that begins at the detector's box, in widths of the face.
    """
    width = max(1.0, float(np.median(raw[:, :, 0].max(1) - raw[:, :, 0].min(1))))
    sure = _share(np.where(np.isfinite(scores), scores, BELIEF[1]), *BELIEF)
    if len(raw) > 2:
        jaw = raw[:, list(JAW)]
        off = np.linalg.norm(jaw[1:-1] - (jaw[:-2] + jaw[2:]) / 2, axis=2).mean(1) / width
        sure[1:-1] = np.minimum(sure[1:-1], _share(off, TREMBLE[1], TREMBLE[0]))
    sure = np.minimum(sure, _share(np.abs(turns), TURNED[1], TURNED[0]))
    for frame, distance in apart.items():
        sure[frame] = min(float(sure[frame]), float(_share(np.array([distance]), APART[1], APART[0])[0]))
    held = cv2.erode(sure[:, None], np.ones((2 * HELD + 1, 1), np.uint8))
    eased = cv2.GaussianBlur(held, (1, 0), sigmaX=1e-3, sigmaY=EASED, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(LEAST + (1 - LEAST) * np.minimum(1, eased.ravel()), np.float32)


def _share(values: NDArray[np.floating], none: float, whole: float) -> Floats:
    """0 at `none`, 1 at `whole`, linear in between."""
    return np.asarray(np.clip((values - none) / (whole - none), 0, 1), np.float32)
