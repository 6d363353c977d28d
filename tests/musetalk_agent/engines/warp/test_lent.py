"""References are enlarged once, and what is fetched from them is what would have been fetched from the frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp.artefacts import FINER, EnlargedMouth
from musetalk_agent.engines.warp.mouth_space import MouthShape, eye_frame, mesh_shape, to_mouth
from musetalk_agent.media_types import Box, Pixels
from tests.musetalk_agent.engines.warp import faces

TOP = 0.3
OPEN = np.array([0.8, 0.2, 0.1, 0, 0], np.float32)


def of_demo(window: Box | None = None) -> tuple[Pixels, EnlargedMouth, MouthShape]:
    """The demo picture, its mouth lent, and the mouth's shape; `window` is the part of the picture that is known."""
    picture, points = faces.demo_picture(), faces.demo_points()
    frame = eye_frame(points)
    shape = mesh_shape(to_mouth(frame, points))
    box = window or Box(0, 0, picture.shape[1], picture.shape[0])
    return picture, EnlargedMouth.of(picture[box.y0 : box.y1, box.x0 : box.x1], box, frame, shape, TOP), shape


@pytest.mark.parametrize("window", [None, Box(200, 260, 430, 520)], ids=["whole", "cut"])
def test_linear_samples_of_what_is_lent_are_bicubic_ones_of_the_frame(window: Box | None) -> None:
    picture, lent, _ = of_demo(window)
    middle = faces.demo_points()[[13, 14]].mean(0)
    rng = np.random.default_rng(3)
    x, y = (rng.uniform(at - 40, at + 40, (50, 50)).astype(np.float32) for at in middle)
    exact = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(int)
    to_x, to_y = (x * FINER + lent.offset[0]).astype(np.float32), (y * FINER + lent.offset[1]).astype(np.float32)
    made = cv2.remap(lent.pixels, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    away = np.abs(made[..., :3].astype(int) - exact)
    assert np.percentile(away, 99) <= 2 and away.max() <= 5


def test_what_is_lent_reaches_around_the_mouth_and_not_beyond_the_window() -> None:
    window = Box(200, 260, 430, 520)
    picture, lent, _ = of_demo(window)
    height, width = (size // FINER for size in lent.pixels.shape[:2])
    assert 0 < width <= window.width and 0 < height <= window.height
    whole = of_demo()[1].pixels
    assert whole.shape[0] < FINER * picture.shape[0] and whole.shape[1] < FINER * picture.shape[1]


def test_a_window_beside_the_mouth_lends_at_least_a_pixel() -> None:
    assert min(of_demo(Box(0, 0, 8, 8))[1].pixels.shape[:2]) >= FINER


def test_an_actor_enlarges_a_reference_once(tmp_path: Path) -> None:
    engine, session = faces.opened_with(tmp_path, [faces.demo_picture()] * 3, [faces.demo_points()] * 3)
    session.artefacts.lent.clear()
    for idle_index in (0, 1, 2, 0):
        engine.infer([PatchRequest(session, idle_index, OPEN)])
    (kept,) = session.artefacts.lent.values()
    engine.infer([PatchRequest(session, 1, OPEN)])
    assert list(session.artefacts.lent.values()) == [kept]
