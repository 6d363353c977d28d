"""A clip's faces as MuseTalk's trainer reads them, and whether it may be trained on at all."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, FaceNet, Points
from musetalk_agent.avatars.face_picture import EYES, cut_face
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.media_types import Pixels

LANDMARKS = (
    *(127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356),  # jaw
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
    *(168, 6, 195, 4, 98, 97, 2, 326, 327),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91),  # outer lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips
)
"""The mesh points nearest to the 68 landmarks of dlib's order, which the trainer takes."""
LEAST_DETAIL = 0.25
"""Least fine detail against coarse, of a face up to 160 pixels between its eyes. 22 real clips measured 0.32 … 0.44; the same
blurred over 1.5 pixels at most 0.24."""
_LOOK_EVERY = 25
_SHARP_EYES = 160.0
_FINE, _COARSE = 1.0, 3.0


@dataclass
class FaceClip:
    """Follows the widest face of a clip's first frame; that one must be on every frame.

    Args:
        net: the face networks.
        least_px: least width of the face's box, in pixels (median).
    """

    net: FaceNet
    least_px: int
    boxes: list[list[int]] = field(default_factory=list)
    landmarks: list[list[list[int]]] = field(default_factory=list)
    fault: str | None = None
    _detail: list[float] = field(default_factory=list)
    _follower: FaceFollower = field(init=False)

    def __post_init__(self) -> None:
        self._follower = FaceFollower(self.net)

    def push(self, bgr: Pixels) -> None:
        """Takes the next frame, uint8 BGR; after a fault nothing is looked at any more."""
        if self.fault is not None:
            return
        frame = len(self.boxes)
        seen = {face.number: face.face.points for face in self._follower.push(bgr)}
        points = seen.get(0)
        if points is None:
            self.fault = f"frame {frame} shows {'another face' if seen else 'no face'}"
            return
        height, width = bgr.shape[:2]
        low, high = points.min(0), points.max(0)
        box = [*np.clip(np.floor(low), 0, (width, height)), *np.clip(np.ceil(high), 0, (width, height))]
        self.boxes.append([int(value) for value in box])
        self.landmarks.append(np.round(points[list(LANDMARKS)]).astype(int).tolist())
        if frame % _LOOK_EVERY == 0:
            self._detail.append(detail(bgr, points))

    def verdict(self) -> str | None:
        """Why the clip is left out; None when it is good."""
        if self.fault is not None or not self.boxes:
            return self.fault or "it has no frame"
        width = float(np.median([box[2] - box[0] for box in self.boxes]))
        if width < self.least_px:
            return f"the face is {width:.0f} px wide; {self.least_px} are needed"
        found = float(np.median(self._detail))
        if found < LEAST_DETAIL:
            return f"the face is blurred (detail {found:.2f}; {LEAST_DETAIL:g} is needed)"
        return None


def detail(bgr: Pixels, points: Points) -> float:
    """Fine against coarse detail of a face: mean size of what is finer than a pixel over what is between one and three."""
    eyes = min(_SHARP_EYES, float(np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE])))
    zoom = max(1.0, eyes / EYES)
    grey = np.asarray(cv2.cvtColor(cut_face(bgr, points, zoom).pixels, cv2.COLOR_BGR2GRAY), np.float32)
    soft, softer = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (_FINE, _COARSE))
    part = slice(int(20 * zoom), int(120 * zoom)), slice(int(24 * zoom), int(136 * zoom))  # brows to lips
    return float(np.abs(grey - soft)[part].mean()) / max(float(np.abs(soft - softer)[part].mean()), 1e-3)
