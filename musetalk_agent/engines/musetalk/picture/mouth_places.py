"""Where the head has its mouth in the network's picture of each idle frame, whatever the clip's own mouth does there."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.musetalk.artefacts import SIDE, MuseTalkArtefacts
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER

STEADY = (33, 133, 362, 263, 168, 6, 195, 5, 4, 1, 2, 98, 327, 93, 323, 50, 280)
"""Mesh points that no mouth moves: corners of the eyes, bridge and wings of the nose, cheekbones, ears."""


def mouth_places(landmarks: NDArray[np.float32], artefacts: MuseTalkArtefacts) -> NDArray[np.float64]:
    """The first frame's mouth, carried to each frame by the similarity that fits the steady points best (least squares).

    Args:
        landmarks: float32 `[n, points, 2]`, of the bundle, pixels of the image.

    Returns:
        `[n, 2]`, x and y in pixels of the network's `[SIDE, SIDE]` picture.
    """
    points = np.asarray(landmarks[:, list(STEADY)], np.float64) @ (1, 1j)
    middles = points.mean(1, keepdims=True)
    first = points[0] - middles[0]
    turns = (points - middles) @ first.conj() / np.vdot(first, first)
    lips = np.asarray(landmarks[0, [*OUTER_UPPER, *OUTER_LOWER]], np.float64) @ (1, 1j)
    mouths = middles[:, 0] + turns * (lips.mean() - middles[0])
    places = np.stack([mouths.real, mouths.imag], 1)
    if artefacts.placements is None:
        boxes = artefacts.boxes.astype(np.float64)
        return np.asarray((places - boxes[:, :2]) * (SIDE / (boxes[:, 2:] - boxes[:, :2])))
    back = np.stack([cv2.invertAffineTransform(placement.astype(np.float64)) for placement in artefacts.placements])
    return np.asarray(np.einsum("nij,nj->ni", back[:, :, :2], places) + back[:, :, 2])
