"""Composition: bit-equal outside the box, exact blending inside."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.compose.compositor import Compositor, paste
from musetalk_agent.engines.pattern import pattern_bundle
from musetalk_agent.media_types import Box, Patch


def test_paste_is_pillows_formula_for_every_combination() -> None:
    background, patch = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for alpha in (0, 1, 127, 128, 254, 255):
        mask = np.full(background.shape, alpha, np.uint8)
        made = paste(np.dstack([background] * 3), np.dstack([patch] * 3), mask)[..., 0]
        t = background.astype(int) * (255 - alpha) + patch.astype(int) * alpha + 128
        assert np.array_equal(made, ((t >> 8) + t) >> 8)
    assert np.array_equal(paste(np.dstack([background] * 3), np.dstack([patch] * 3), mask)[..., 0], patch)


def test_only_the_box_changes_and_it_is_what_a_whole_conversion_gives() -> None:
    bundle = pattern_bundle(64, 48, 25)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 20, 3), np.uint8)
    box = Box(20, 16, 40, 32)
    frame = Compositor(bundle).compose(0, Patch(box, pixels))
    picture = np.full((48, 64, 3), 127, np.uint8)
    window = bundle.box(0)
    picture[window.y0 : window.y1, window.x0 : window.x1] = 0
    picture[box.y0 : box.y1, box.x0 : box.x1] = pixels
    assert np.array_equal(frame.i420, cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420).reshape(-1))
    assert frame.spoken and frame.i420.flags.writeable


def test_the_idle_picture_is_not_copied() -> None:
    bundle = pattern_bundle(64, 48, 25)
    assert np.shares_memory(Compositor(bundle).idle(0).i420, bundle.frames)


def test_a_masked_patch_blends_over_the_idle_face() -> None:
    bundle = pattern_bundle(64, 48, 25)
    box = Box(20, 16, 24, 20)
    white = np.full((4, 4, 3), 255, np.uint8)
    nothing = Compositor(bundle).compose(0, Patch(box, white, np.zeros((4, 4), np.uint8)))
    assert np.array_equal(nothing.i420, bundle.frames[0].reshape(-1))
    all_of_it = Compositor(bundle).compose(0, Patch(box, white, np.full((4, 4), 255, np.uint8)))
    assert all_of_it.i420[: 64 * 48].reshape(48, 64)[16:20, 20:24].min() == 235
