"""The blend is Pillow's, for every combination of values and on any part of a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from musetalk_agent.compose.compositor import paste
from tests.reference import musetalk as reference


def test_every_combination_of_background_patch_and_mask() -> None:
    background, patch = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pictures = np.dstack([background] * 3), np.dstack([patch] * 3)
    t = np.empty(background.shape, np.uint32)
    for alpha in range(256):
        made = paste(*pictures, np.full(background.shape, alpha, np.uint8))
        t[:] = background.astype(np.uint32) * (255 - alpha) + patch.astype(np.uint32) * alpha + 128
        assert np.array_equal(made[..., 0], ((t >> 8) + t) >> 8), alpha
        assert np.array_equal(made[..., 0], made[..., 2])


@pytest.mark.parametrize("size", [(2, 2), (34, 200), (190, 240)])
def test_parts_of_pictures_blend_as_pillow_pastes_them(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[0])
    background, patch = rng.integers(0, 256, (2, size[0] + 9, size[1] + 7, 3), np.uint8)
    part = (slice(3, 3 + size[0]), slice(5, 5 + size[1]))  # neither contiguous nor aligned
    mask = rng.integers(0, 256, (size[0], size[1] + 2), np.uint8)[:, 1:-1]
    theirs = Image.fromarray(background[part].copy())
    theirs.paste(Image.fromarray(patch[part].copy()), (0, 0), Image.fromarray(np.ascontiguousarray(mask)))
    before = background.copy(), patch.copy(), mask.copy()
    assert np.array_equal(paste(background[part], patch[part], mask), np.array(theirs))
    assert all(np.array_equal(a, b) for a, b in zip(before, (background, patch, mask), strict=True))


def test_random_boxes_blend_as_upstream_blends_them() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        width, height = (int(v) for v in rng.integers(120, 400, 2))
        x1, y1 = int(rng.integers(0, width - 60)), int(rng.integers(0, height - 60))
        box = (x1, y1, int(rng.integers(x1 + 16, width + 1)), int(rng.integers(y1 + 16, height + 1)))
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        face = rng.integers(0, 256, (256, 256, 3), np.uint8)
        (xs, ys, xe, ye), _ = reference.crop_box(box)
        mask = rng.integers(0, 256, (ye - ys, xe - xs), np.uint8)  # not 0 outside the face box, nor outside the picture
        resized = cv2.resize(face, (box[2] - box[0], box[3] - box[1]))
        ours = frame.copy()
        inside = mask[box[1] - ys : box[3] - ys, box[0] - xs : box[2] - xs]
        part = (slice(box[1], box[3]), slice(box[0], box[2]))
        ours[part] = paste(frame[part], resized, inside)
        assert np.array_equal(ours, reference.blend(frame, face, box, mask))
