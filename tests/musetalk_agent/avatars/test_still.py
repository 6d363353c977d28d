from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.avatars.blink import Blink
from musetalk_agent.avatars.face import FaceNet, Points
from musetalk_agent.avatars.still import IdleMotion
from musetalk_agent.media import Pixels
from musetalk_agent.weights import ModelStore

from .clips import face

SIDE = 256


@pytest.fixture(scope="module")
def points(models: ModelStore) -> Points:
    net, rgb = FaceNet(models), np.ascontiguousarray(face(SIDE)[:, :, ::-1])
    return net.faces(rgb)[0].points


@pytest.fixture(scope="module")
def frames(points: Points) -> list[tuple[Pixels, Points]]:
    return list(IdleMotion(face(SIDE), points, 25).frames())


def test_it_moves_a_little_and_never_jumps(frames: list[tuple[Pixels, Points]], points: Points) -> None:
    path = np.stack([moved[6] for _, moved in frames])
    width = np.ptp(points[:, 0])
    assert 0.004 < np.ptp(path[:, 0]) / width < 0.04
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 0.004 * width


def test_it_stands_still_at_both_ends_so_that_ping_pong_is_seamless(frames: list[tuple[Pixels, Points]]) -> None:
    steps = np.linalg.norm(np.diff(np.stack([moved[6] for _, moved in frames]), axis=0), axis=1)
    assert steps[0] < 0.15 * steps.max() and steps[-1] < 0.15 * steps.max()


def test_the_mesh_goes_where_the_picture_goes(frames: list[tuple[Pixels, Points]], models: ModelStore) -> None:
    net = FaceNet(models)
    for picture, moved in (frames[0], frames[-1]):
        rgb = np.ascontiguousarray(picture[:, :, ::-1])
        assert np.abs(net.faces(rgb)[0].points - moved).mean() < 0.6


def test_edges_stay_as_they_are(frames: list[tuple[Pixels, Points]]) -> None:
    picture = face(SIDE).astype(int)
    for moved, _ in frames[::20]:
        assert np.abs(moved[0].astype(int) - picture[0]).max() <= 40
        assert np.abs(moved[:, 0].astype(int) - picture[:, 0]).mean() < 1.0
        assert moved[0].min() > 60  # the background is light: no black edge came in


def test_the_eyes_close_and_open_once(frames: list[tuple[Pixels, Points]], points: Points) -> None:
    left, right = points[33].astype(int), points[263].astype(int)
    rows = slice(min(left[1], right[1]) - 8, max(left[1], right[1]) + 8)
    eyes = np.stack([picture[rows, left[0] : right[0]].astype(float) for picture, _ in frames])
    change = np.abs(np.diff(eyes, axis=0)).mean((1, 2, 3))
    blink = np.flatnonzero(change > 4 * np.median(change))
    assert 3 <= len(blink) <= 10 and np.ptp(blink) <= 10
    assert 20 < blink.mean() < 34


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
