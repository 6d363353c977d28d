"""The edge of a patch on a face: an edge that runs round the mouth and that the reference has not.

Gradients of a face are averaged over the film in the face's own place, so that what moves or rustles cancels, and the reference's
are taken off, and with them folds, chin and beard. Along an edge that closes round the mouth the rest is steep everywhere.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face_picture import EYES

Floats = NDArray[np.float64]

_PLACES = 64
"""Places along a contour that are looked at."""
_RADII = np.arange(0.5, 1.0, 0.02)
"""Half widths of the contours, in eye distances: from just outside the lips to the face's outline."""
_ASPECTS = (0.65, 0.75, 0.85, 1.0)
_DOWN = (-0.1, 0.0, 0.06, 0.12, 0.2, 0.3)
"""How far a contour's middle lies under the mouth's, in eye distances."""
_BESIDE = (-5, -4, 4, 5)
"""Where, in pixels across an edge, the face is no longer steep."""
_SHARE = 20
"""The steepness that all but this percentage of the places pass counts: a fold runs along a part of a contour, a seam along all."""


def seam(gradients: Floats, reference: Floats, mouth: Floats) -> float:
    """How steep the steepest contour round the mouth is, in levels a pixel of the cut-out; 0 without any.

    Args:
        gradients: float64 `[176, 160, 2]`, mean gradients of the film's face, as `FaceMeasures` sums them.
        reference: the same of the reference's face.
        mouth: float64 `[2]`, the mouth's middle in the cut-out.
    """
    places, normals = _contours()
    change = (gradients - reference).astype(np.float32)

    def across(offset: int) -> Floats:
        at = (places + normals * offset + mouth).astype(np.float32)
        parts = [
            cv2.remap(np.ascontiguousarray(change[..., k]), at[..., 0], at[..., 1], cv2.INTER_LINEAR) for k in (0, 1)
        ]
        return np.asarray(parts[0] * normals[..., 0] + parts[1] * normals[..., 1], np.float64)

    steep = {offset: across(offset) for offset in (-1, 0, 1, *_BESIDE)}
    found = 0.0
    for sign in (1, -1):
        edge = np.maximum.reduce([sign * steep[k] for k in (-1, 0, 1)])
        beside = np.maximum.reduce([sign * steep[k] for k in _BESIDE])
        found = max(found, float(np.percentile(edge - beside, _SHARE, axis=1).max()))
    return found


@cache
def _contours() -> tuple[Floats, Floats]:
    """Ellipses round a mouth at 0, 0: places and normals, float64 `[n, 64, 2]`, pixels."""
    angles = np.linspace(0, 2 * np.pi, _PLACES, endpoint=False)
    places, normals = [], []
    for radius in _RADII:
        for aspect in _ASPECTS:
            out = np.stack([np.cos(angles) / radius, np.sin(angles) / (radius * aspect)], 1)
            out /= np.linalg.norm(out, axis=1, keepdims=True)
            for down in _DOWN:
                curve = np.stack([radius * np.cos(angles), radius * aspect * np.sin(angles) + down], 1)
                places.append(curve * EYES)
                normals.append(out)
    return np.stack(places), np.stack(normals)
