"""A seam is an edge that closes round the mouth and that the reference has not."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.avatars.face_picture import HEIGHT, WIDTH
from musetalk_agent.judge import bars
from musetalk_agent.judge.seam import seam

MOUTH = np.array([80.0, 98.0])


def gradients(picture: np.ndarray) -> np.ndarray:
    soft = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.7)
    return np.stack([cv2.Sobel(soft, cv2.CV_32F, *axis, ksize=3) / 8 for axis in ((1, 0), (0, 1))], -1).astype(float)


def test_a_step_round_the_mouth_is_a_seam_and_the_reference_s_own_edges_are_none() -> None:
    flat = np.full((HEIGHT, WIDTH), 120.0)
    patched = cv2.ellipse(flat.copy(), (80, 106), (44, 33), 0, 0, 360, 124.0, -1)
    assert seam(gradients(patched), gradients(flat), MOUTH) > bars.SEAM
    assert seam(gradients(patched), gradients(patched), MOUTH) == 0.0
    fold = cv2.line(flat.copy(), (40, 80), (50, 140), 60.0, 2)
    assert seam(gradients(fold), gradients(flat), MOUTH) < bars.SEAM
