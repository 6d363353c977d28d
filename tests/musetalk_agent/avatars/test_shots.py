from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.shots import FrameDifference, find_cuts, longest_shot, thumbnail
from musetalk_agent.media_types import Pixels

from .clips import face, flat, moving


def other_shot(side: int = 256) -> Pixels:
    """The face in another light, nearer, mirrored, before another wall."""
    matrix = np.array([[1.3, 0, -50], [0, 1.3, -40]])
    near = cv2.warpAffine(face(side)[:, ::-1], matrix, (side, side), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    wall = np.linspace(0, 90, side, dtype=np.float32)[:, None, None]
    return np.asarray(np.clip(near * 0.7 + wall - 20, 0, 255), np.uint8)


def found(clip: list[Pixels], faces: list[int] | None = None) -> list[int]:
    frames = np.array(faces if faces is not None else range(len(clip)), np.int64)
    return find_cuts([thumbnail(picture) for picture in clip], frames)


def test_a_cross_fade_belongs_to_neither_shot() -> None:
    """Thirty frames of one, ten in which it gives way to the other, thirty of that."""
    first, second = face().astype(np.float32), other_shot().astype(np.float32)
    between = [np.asarray(first + (second - first) * (k + 0.5) / 10, np.uint8) for k in range(10)]
    before, after = found([*[face()] * 30, *between, *[other_shot()] * 30])
    assert before in range(20, 31) and after in range(40, 51)


def test_neither_a_fade_to_another_light_nor_a_pan_is_one() -> None:
    brighter = [np.asarray(face() * (0.4 + 0.6 * k / 39), np.uint8) for k in range(40)]
    assert found(brighter) == []
    wide = np.hstack([face(), other_shot(), face()[:, ::-1]])
    assert found([np.ascontiguousarray(wide[:, 8 * k : 8 * k + 256]) for k in range(60)]) == []


@pytest.mark.parametrize("step", [0.0, 1.0, 4.0, 12.0])
def test_a_head_that_moves_is_no_cut(step: float) -> None:
    assert found(moving(12, step=step)) == []


def test_the_frame_after_a_cut_is_named() -> None:
    first, second = moving(9), [other_shot()] * 7
    assert found([*first, *second]) == [9]
    assert found([*first, *second, *first]) == [9, 16]


def test_a_light_that_is_switched_on_is_no_cut() -> None:
    dim = [np.asarray(picture // 2, np.uint8) for picture in moving(6)]
    assert found([*dim, *moving(12)[6:]]) == []


def test_repeated_frames_hide_no_cut_and_make_none() -> None:
    """A clip of 12 frames a second at 25: every picture stands twice, as the same array."""
    pictures = [thumbnail(p) for p in [*moving(6, step=3.0), *[other_shot()] * 6]]
    twice = [picture for picture in pictures for _ in range(2)]
    assert find_cuts(twice, np.arange(24)) == [12]
    assert find_cuts(twice[:12], np.arange(12)) == []


def test_a_black_stretch_is_a_cut_only_when_another_picture_follows() -> None:
    black, faces = [flat(0, 256, 256)] * 4, [*range(5), *range(9, 14)]
    assert found([*moving(5), *black, *moving(10)[5:]], faces) == []
    assert found([*moving(5), *black, *[other_shot()] * 5], faces) == [9]


def test_the_longest_shot_is_used_without_the_empty_frames_between() -> None:
    faces = np.array([*range(5), *range(9, 20)])
    assert longest_shot(20, faces, [9]) == (9, 20)
    assert longest_shot(20, faces[:8], [9]) == (0, 5)
    assert longest_shot(20, faces, []) == (0, 20)


def test_change_of_equal_and_of_flat_pictures() -> None:
    grey = np.full((4, 4), 90, np.uint8)
    assert FrameDifference.between(grey, grey) == FrameDifference(0.0, 1.0)
    assert FrameDifference.between(grey, np.full((4, 4), 30, np.uint8)) == FrameDifference(60.0, 1.0)
    stripes = np.tile(np.array([0, 200], np.uint8), (4, 2))
    assert FrameDifference.between(stripes, 200 - stripes).correlation == pytest.approx(-1)
