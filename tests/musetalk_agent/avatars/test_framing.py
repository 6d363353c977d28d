from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Box
from musetalk_agent.protocol.http import Picture

from .clips import face, noise

LIMITS = AvatarLimits()


@pytest.mark.parametrize(
    ("clip", "wish", "size"),
    [
        ((360, 288), (None, None), (360, 288)),
        ((361, 289), (None, None), (360, 288)),
        ((1920, 1080), (None, None), (1280, 720)),
        ((1080, 1920), (None, None), (720, 1280)),
        ((720, 1280), (None, None), (720, 1280)),
        ((2160, 3840), (None, None), (720, 1280)),
        ((4000, 3000), (None, None), (1108, 830)),
        ((4096, 4096), (None, None), (960, 960)),
        ((3000, 500), (None, None), (1280, 212)),
        ((360, 288), (512, 512), (512, 512)),
        ((360, 288), (512, None), (512, 410)),
        ((360, 288), (None, 144), (180, 144)),
        ((360, 288), (333, 211), (332, 210)),
        ((1080, 1920), (1080, 1920), (1080, 1920)),
        ((1920, 1080), (1920, 1080), (1920, 1080)),
        ((2160, 3840), (1080, None), (1080, 1920)),
        ((2160, 3840), (None, 1920), (1080, 1920)),
        ((720, 1280), (1280, None), (1280, 1620)),
        ((1280, 720), (None, 1920), (1080, 1920)),
    ],
)
def test_sizes(clip: tuple[int, int], wish: tuple[int | None, int | None], size: tuple[int, int]) -> None:
    fit = framing.fit(clip, *wish, LIMITS)
    assert (fit.width, fit.height) == size


@given(
    st.integers(64, 8192), st.integers(64, 8192), st.none() | st.integers(64, 1920), st.none() | st.integers(64, 1920)
)
def test_every_size_is_even_and_within_bounds(w: int, h: int, wish_w: int | None, wish_h: int | None) -> None:
    try:
        Picture(width=wish_w, height=wish_h)
    except ValidationError:
        assert (wish_w or 0) * (wish_h or 0) > 1920 * 1080
        return
    try:
        fit = framing.fit((w, h), wish_w, wish_h, LIMITS)
    except AvatarUndecodable as error:
        assert error.limit == LIMITS.side_pixels_min
        return
    free = wish_w is None and wish_h is None
    assert 64 <= min(fit.width, fit.height) and max(fit.width, fit.height) <= (1280 if free else 1920)
    assert fit.width * fit.height <= (1280 * 720 if free else 1920 * 1080)
    assert all(side % 2 == 0 for side in (fit.width, fit.height, *fit.scaled))
    assert fit.scaled[0] >= fit.width and fit.scaled[1] >= fit.height


def test_pixels_of_the_clip_s_own_size_are_not_resampled() -> None:
    picture = noise(321, 241)
    fit = framing.fit((321, 241), None, None, LIMITS)
    assert np.array_equal(framing.scale(picture, fit), picture[:240, :320])


def test_planes_are_limited_range_bt601() -> None:
    white, black = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64, 3), np.uint8)
    red = np.zeros((64, 64, 3), np.uint8)
    red[:, :, 2] = 255
    assert (framing.to_i420(white)[:64] == 235).all() and (framing.to_i420(black)[:64] == 16).all()
    assert abs(int(framing.to_i420(red)[0, 0]) - 81) <= 1  # BT.709 would give 63


def test_cut_equals_cutting_the_picture() -> None:
    picture = face(128)
    box = Box(20, 34, 84, 120)
    part = framing.crop_i420(framing.to_i420(picture), (128, 128), box)
    whole = framing.to_bgr(framing.to_i420(picture))
    assert np.array_equal(framing.to_bgr(part)[2:-2, 2:-2], whole[36:118, 22:82])


def test_crop_holds_the_face() -> None:
    fit = framing.Fit((640, 512), 512, 512)
    points = np.full((3, 468, 2), 0, np.float32)
    points[:, :, 0] = np.linspace(500, 630, 468)
    points[:, :, 1] = np.linspace(100, 300, 468)
    left, top = framing.crop_corner(points, fit)
    assert (left, top) == (118, 0) or (left, top) == (120, 0)
    assert left % 2 == 0 and left + 512 >= 630
    centred = points - np.array([245, 0], np.float32)
    assert framing.crop_corner(centred, fit) == (64, 0)


def test_windows_are_even_of_one_size_and_follow_the_face() -> None:
    points = np.zeros((10, 468, 2), np.float32)
    points[:, :, 0] = np.linspace(100, 200, 468) + np.arange(10)[:, None] * 12.3
    points[:, :, 1] = np.linspace(80, 200, 468)
    boxes = framing.face_windows(points, 360, 288)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert (boxes % 2 == 0).all() and (sizes == sizes[0]).all()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 360).all() and (boxes[:, 3] <= 288).all()
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs((centres[4] - centres[0]) - 4 * 12.3) <= 2


def test_to_clip_maps_pixel_centres() -> None:
    points = np.array([[[-0.5, -0.5], [319.5, 239.5]]], np.float32)
    fit = framing.Fit((320, 240), 320, 240)
    assert np.allclose(framing.to_clip(points, (640, 480), fit), [[[-0.5, -0.5], [639.5, 479.5]]])
