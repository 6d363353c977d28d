from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import eyelids
from musetalk_agent.avatars.eyelids import Blink
from musetalk_agent.avatars.face import FaceNet, Points
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

from .clips import face

SIDE = 256
SKIN, BROW = (150, 175, 215), (30, 40, 50)


@pytest.fixture(scope="module")
def points(models: ModelStore) -> Points:
    net, rgb = FaceNet(models), np.ascontiguousarray(face(SIDE)[:, :, ::-1])
    return net.faces(rgb)[0].points


def test_half_a_blink_changes_the_eyes_only(points: Points) -> None:
    picture = face(SIDE)
    changed = np.abs(Blink(picture, points).closed(0.5).astype(int) - picture).max(2) > 8
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert columns.min() > points[33, 0] - 6 and columns.max() < points[263, 0] + 6
    assert rows.max() < points[1, 1] and rows.min() > points[10, 1]


def test_closed_eyes_are_left_alone(points: Points) -> None:
    shut = points.copy()
    for upper, lower in ((159, 145), (386, 374), (158, 153), (385, 380), (160, 144), (387, 373)):
        shut[upper] = shut[lower]
    shut[[161, 246, 157, 173]] = points[[163, 7, 154, 155]]
    shut[[384, 398, 388, 466]] = points[[381, 382, 390, 249]]
    assert Blink(face(SIDE), shut).closed(1.0) is not None
    assert np.array_equal(Blink(face(SIDE), shut).closed(1.0), face(SIDE))


def drawn_eyes(brow_gap: float, iris: bool) -> tuple[Pixels, Points]:
    """Eyes 60 px wide and 20 high on plain skin under dark brows, whose hair ends `brow_gap` eye heights over the lid.

    The mesh sees it end 0.3 eye heights higher up, as it does in pictures.
    """
    picture = np.full((200, 300, 3), SKIN, np.uint8)
    points = np.full((468, 2), (150.0, 150.0), np.float32)
    for (upper, lower, brow), x in zip(eyelids._EYES, (50, 190), strict=True):
        u = np.linspace(0, 1, 9)
        lid = 90 - 10 * np.sin(np.pi * u)
        edge = 90 + 10 * np.sin(np.pi * u)
        for ids, y in ((upper, lid), (lower, edge)):
            points[list(ids)] = np.stack([x + 60 * u, y], 1)
        top = 80 - 20 * brow_gap
        points[list(brow)] = np.stack([x + np.linspace(-5, 65, 5), np.full(5, top - 6)], 1)
        cv2.rectangle(picture, (x - 8, round(top) - 14), (x + 68, round(top)), BROW, -1)
        cv2.ellipse(picture, (x + 30, 90), (30, 10), 0, 0, 360, (225, 225, 225) if iris else (125, 150, 190), -1)
        if iris:
            cv2.circle(picture, (x + 30, 90), 9, (40, 40, 40), -1)
    return picture, points


@pytest.mark.parametrize("brow_gap", [0.2, 0.35, 1.5])
def test_a_closed_lid_is_skin_however_near_the_brow(brow_gap: float) -> None:
    picture, points = drawn_eyes(brow_gap, iris=True)
    shut = Blink(picture, points).closed(1.0)
    for x in (80, 220):
        column = shut[82:100, x].astype(int)  # over what was the open eye
        assert np.abs(column[:10] - SKIN).max(1).mean() < 45
        assert (np.abs(column - BROW).max(1) < 60).sum() <= 4  # lashes may be dark, a lid is not
        assert np.array_equal(shut[round(80 - 20 * brow_gap) - 8, x], BROW)


def test_what_shows_no_iris_does_not_blink() -> None:
    picture, points = drawn_eyes(1.0, iris=False)
    assert np.array_equal(Blink(picture, points).closed(1.0), picture)


def test_eyes_too_small_for_a_lid_do_not_blink() -> None:
    """Under 8 pixels of width nothing of a lid would be seen."""
    picture, points = drawn_eyes(1.0, iris=True)
    small = cv2.resize(picture, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
    assert np.array_equal(Blink(np.asarray(small, np.uint8), points * 0.125).closed(1.0), small)
    half = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert not np.array_equal(Blink(np.asarray(half, np.uint8), points * 0.5).closed(1.0), half)


@pytest.mark.parametrize(
    "cut", [np.s_[82:], np.s_[:, 60:], np.s_[:92], np.s_[:, :245]], ids=["top", "left", "bottom", "right"]
)
def test_an_eye_that_the_picture_cuts_stays_open_and_the_other_blinks_where_it_is_whole(cut: object) -> None:
    picture, points = drawn_eyes(1.0, iris=True)
    part = np.ascontiguousarray(picture[cut])  # type: ignore[index]  # a slice of pixels
    rows, columns = cut if isinstance(cut, tuple) else (cut, slice(None))
    moved = points - np.array([columns.start or 0, rows.start or 0], np.float32)  # type: ignore[union-attr]  # the same
    shut = Blink(part, moved).closed(1.0)
    changed = np.flatnonzero((shut != part).any((0, 2))) + (columns.start or 0)  # type: ignore[union-attr]  # the same
    if isinstance(cut, tuple):
        assert changed.size and (changed > 150).all() if columns.start else (changed < 150).all()
    else:
        assert not changed.size


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("iris", [False, True], ids=["glasses", "an iris"])
def test_glasses_are_known_at_any_size(iris: bool, scale: int) -> None:
    """The lower lids are nearly flat here: the skin that an iris is judged by lies far below them."""
    picture, points = drawn_eyes(1.0, iris)
    for _, lower, _ in eyelids._EYES:
        points[list(lower), 1] = 90 + (points[list(lower), 1] - 90) / 4
    large = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale), np.uint8)
    shut = Blink(large, points * np.float32(scale)).closed(1.0)
    assert np.array_equal(shut, large) != iris


def test_an_eye_without_skin_under_it_blinks() -> None:
    """The picture ends right below the lids: nothing says that they are glasses."""
    picture, points = drawn_eyes(1.0, iris=False)
    for _, lower, _ in eyelids._EYES:
        points[list(lower), 1] = 90
    cut = np.asarray(cv2.resize(picture, None, fx=4, fy=4), np.uint8)[: 4 * 90 + 5]
    assert not np.array_equal(Blink(cut, 4 * points).closed(1.0), cut)
