"""How the light on the lower face differs between a pose and the frame that lends it its lips."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.geometry import OL, OU, Floats, S, Shape, to_mouth
from musetalk_agent.engines.warp.lips import sample
from musetalk_agent.engines.warp.references import Ints

LIGHT_MOST = 25.0
"""Levels by which the reference's skin is made lighter or darker at most."""
LIPS_AROUND = 0.03
"""How far around the lips nothing is compared (eye distances)."""
LIGHT_ROWS, LIGHT_COLS = 12, 16
LIGHT_AREA = (-0.6, 0.6, 0.3, 1.25)
"""Where light is compared between poses: u from, to; v from, to."""


def in_window(bundle: Bundle, frames: Floats, pose: int) -> Floats:
    """Mouth space to pixels of the face window of `pose`."""
    frame = frames[pose].astype(np.float32, copy=True)
    frame[:, 2] -= bundle.boxes[pose, :2]
    return np.asarray(frame, np.float32)


def light_differences(
    bundle: Bundle, frames: Floats, poses: tuple[Shape, ...], shapes: tuple[Shape, ...], references: Ints, shown: Ints
) -> Floats:
    """Low-frequency differences of colour between each pose and its reference, the lips left out and filled from around.

    Only what is skin in both counts: beside a turned face lies what is behind it.
    """
    u0, u1, v0, v1 = LIGHT_AREA
    fine = 4
    rows, cols = LIGHT_ROWS * fine, LIGHT_COLS * fine
    u, v = np.meshgrid(np.linspace(u0, u1, cols, dtype=np.float32), np.linspace(v0, v1, rows, dtype=np.float32))
    first = int(references[0])
    middle = float(to_mouth(frames[first], bundle.landmarks[first, 0])[1]) + 0.06
    beside = np.clip(np.hypot(u / 0.4, (v - middle) / 0.24) * 4 - 4, 0.002, 1).astype(np.float32)

    def low(pose: int, mouth: Shape) -> tuple[Floats, Floats]:
        window = np.asarray(bundle.faces[pose])
        seen = sample(window, in_window(bundle, frames, pose), u, v).astype(np.float32)
        outline = cv2.convexHull(to_mouth(frames[pose], bundle.landmarks[pose]))[:, 0]
        hull = (outline - (u0, v0)) * ((cols - 1) / (u1 - u0), (rows - 1) / (v1 - v0))
        face = np.zeros((rows, cols), np.uint8)
        cv2.fillConvexPoly(face, np.round(hull).astype(np.int32), 1)
        face = np.asarray(cv2.erode(face, np.ones((5, 5), np.uint8), borderValue=0), np.uint8)
        s = mouth.s_of_u(u[0])
        top, bottom = (np.interp(s, S, mouth.curves[k]) for k in (OU, OL))
        face[(np.abs(s) < 1.2) & (v > top - LIPS_AROUND) & (v < bottom + LIPS_AROUND)] = 0
        return seen, face.astype(np.float32)

    bases = [low(int(pose), shape) for pose, shape in zip(references, shapes, strict=True)]
    out = np.zeros((len(bundle), LIGHT_ROWS, LIGHT_COLS, 3), np.float32)
    for pose in range(len(bundle)):
        base, skin = bases[int(shown[pose])]
        if pose != references[shown[pose]]:
            seen, own = low(pose, poses[pose])
            weight = (beside * skin * own)[..., None]
            blurred = cv2.GaussianBlur((seen - base) * weight, (0, 0), 2.0 * fine)
            blurred /= np.maximum(cv2.GaussianBlur(weight, (0, 0), 2.0 * fine), 1e-4)[..., None]
            out[pose] = cv2.resize(blurred, (LIGHT_COLS, LIGHT_ROWS), interpolation=cv2.INTER_AREA)
    return np.clip(out, -LIGHT_MOST, LIGHT_MOST)
