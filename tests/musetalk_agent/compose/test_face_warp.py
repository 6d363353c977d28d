"""A picture's head moves: the mesh sees it where it was sent, and what is not the head stays where it was."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.face import Face, FaceNet
from musetalk_agent.avatars.face_track import TEMPLES, head_angles
from musetalk_agent.avatars.framing import to_i420
from musetalk_agent.compose.bent_planes import changed_box, planes_of
from musetalk_agent.compose.face_warp import FaceWarp
from musetalk_agent.compose.head_motion import AS_IT_IS, Pose
from musetalk_agent.media_types import Box, Pixels, VideoFrame
from musetalk_agent.protocol.avatar_settings import Mood
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.avatars.clips import face

SIDE = 384
NOSE, LEFT, RIGHT, CHIN = 4, 234, 454, 152


@pytest.fixture(scope="module")
def net() -> FaceNet:
    return FaceNet(ModelStore(None, Manifest.load()))


@pytest.fixture(scope="module")
def seen(net: FaceNet) -> Face:
    return net.faces(np.ascontiguousarray(face(SIDE)[:, :, ::-1]))[0]


def relief(seen: Face) -> np.ndarray:
    assert seen.depths is not None
    return np.asarray(seen.depths - seen.depths[[point for side in TEMPLES for point in side]].mean(), np.float32)


@pytest.fixture(scope="module")
def warp(seen: Face) -> FaceWarp:
    return FaceWarp(seen.points, relief(seen), (SIDE, SIDE))


def frame(picture: Pixels, alpha: Pixels | None = None) -> VideoFrame:
    height, width = picture.shape[:2]
    return VideoFrame(to_i420(picture).reshape(-1), width, height, 0, alpha=alpha)


FRAME = frame(face(SIDE))


def shown(made: VideoFrame) -> Pixels:
    planes = made.i420.reshape(made.height * 3 // 2, made.width)
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8)


def width(seen: Face) -> float:
    return float(np.linalg.norm(seen.points[RIGHT] - seen.points[LEFT]))


def test_the_picture_as_it_is_is_not_copied(warp: FaceWarp) -> None:
    assert warp.moved(FRAME, AS_IT_IS) is FRAME
    moved = warp.moved(FRAME, Pose(yaw=0.02))
    assert not np.shares_memory(moved.i420, FRAME.i420) and moved.i420.shape == FRAME.i420.shape


POSES = [
    Pose(yaw=0.05),
    Pose(yaw=-0.05),
    Pose(pitch=0.06),
    Pose(roll=0.03),
    Pose(x=0.03, y=-0.02),
    Pose(nearer=0.03),
    Pose(0.03, -0.03, 0.02, -0.01, 0.01, 0.02),
]


@pytest.mark.parametrize("pose", POSES)
def test_the_mesh_is_seen_where_it_was_sent(warp: FaceWarp, net: FaceNet, seen: Face, pose: Pose) -> None:
    found = net.faces(np.ascontiguousarray(shown(warp.moved(FRAME, pose))[:, :, ::-1]))[0].points
    sent = warp.mesh(pose)
    assert np.abs(sent - seen.points).max() > 2
    left = np.abs(found - sent).mean() / np.abs(found - seen.points).mean()
    assert np.abs(found - sent).mean() < 1.0 and left < 0.6


@pytest.mark.parametrize(("pose", "axis"), [(Pose(yaw=0.05), 0), (Pose(pitch=0.05), 1)])
def test_a_turn_is_as_far_as_the_mesh_measures_turns(warp: FaceWarp, seen: Face, pose: Pose, axis: int) -> None:
    before, after = head_angles(np.stack([seen.points, warp.mesh(pose)]))
    turned = after - before
    assert 0.02 < turned[axis] < 0.065  # a nod of a face that looks down already is measured as less
    assert abs(turned[1 - axis]) < 0.015


def test_what_is_nearer_goes_further(warp: FaceWarp, seen: Face) -> None:
    went = (warp.mesh(Pose(yaw=0.05)) - seen.points)[:, 0]
    assert went[NOSE] > 0.015 * width(seen) and went[NOSE] > 2 * abs(went[LEFT]) and went[NOSE] > 2 * abs(went[RIGHT])


def test_what_is_far_from_the_head_stands_still(seen: Face, net: FaceNet) -> None:
    wide = np.full((SIDE, 3 * SIDE, 3), 127, np.uint8)
    wide[:, SIDE : 2 * SIDE] = face(SIDE)
    wide[::2, :, 1] += 20
    points = seen.points + np.array([SIDE, 0], np.float32)
    before = frame(wide)
    after = FaceWarp(points, relief(seen), (3 * SIDE, SIDE)).moved(before, POSES[-1])
    changed = np.abs(shown(after).astype(int) - shown(before)).max(2) > 0
    columns = np.flatnonzero(changed.any(0))
    assert columns.min() > points[:, 0].min() - 1.1 * width(seen)
    assert columns.max() < points[:, 0].max() + 1.1 * width(seen)


@pytest.mark.parametrize("pose", POSES)
def test_nothing_folds(warp: FaceWarp, pose: Pose) -> None:
    """A ramp that is moved is a ramp still: no pixel comes before its neighbour."""
    ramp = np.repeat(np.linspace(16, 235, SIDE, dtype=np.float32)[None], SIDE, 0)
    for picture in (ramp, np.ascontiguousarray(ramp.T)):
        planes = np.full(SIDE * SIDE * 3 // 2, 128, np.uint8)
        planes[: SIDE * SIDE] = np.rint(picture).astype(np.uint8).reshape(-1)
        moved = warp.moved(VideoFrame(planes, SIDE, SIDE, 0), pose).i420[: SIDE * SIDE].reshape(SIDE, SIDE)
        inner = moved[8:-8, 8:-8].astype(int)
        assert np.diff(inner, axis=1 if picture is ramp else 0).min() >= -1


def test_its_colours_and_its_alpha_go_along(warp: FaceWarp, seen: Face) -> None:
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(alpha, cv2.convexHull(np.rint(seen.points).astype(np.int32)), 255)
    green = np.full((SIDE, SIDE, 3), (40, 40, 200), np.uint8)
    green[alpha > 0] = (40, 200, 40)
    moved = warp.moved(frame(green, alpha), Pose(x=0.08))
    assert moved.alpha is not None
    shift = 0.08 * width(seen)
    rows, columns = np.nonzero(alpha)
    new_rows, new_columns = np.nonzero(moved.alpha > 127)
    assert new_columns.mean() - columns.mean() == pytest.approx(shift, abs=0.5)
    assert new_rows.mean() == pytest.approx(rows.mean(), abs=0.1 * shift)  # along the face's own eye line
    inside = cv2.erode(moved.alpha, np.ones((9, 9), np.uint8)) > 250
    assert np.abs(shown(moved)[inside].astype(int) - (40, 200, 40)).max() < 12
    assert FRAME.alpha is None and warp.moved(FRAME, Pose(x=0.08)).alpha is None


BOXES = [
    Box(150, 200, 250, 300),
    Box(0, 0, SIDE, SIDE),
    Box(0, 0, 8, 6),
    Box(370, 100, SIDE, 140),
    Box(100, 380, 140, SIDE),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("pose", [Pose(yaw=0.04, roll=0.02), Pose(0.03, -0.03, 0.02, -0.01, 0.01, 0.02)])
def test_a_picture_that_is_kept_moves_as_one_that_is_not(warp: FaceWarp, box: Box, pose: Pose) -> None:
    drawn = FRAME.i420.copy()
    for plane, scale in zip(planes_of(drawn, (SIDE, SIDE)), (1, 2, 2), strict=True):
        part = plane[box.y0 // scale : box.y1 // scale, box.x0 // scale : box.x1 // scale]
        part[:] = np.random.default_rng(0).integers(0, 256, part.shape, np.uint8)
    spoken, kept = replace(FRAME, i420=drawn), warp.keep(FRAME.i420)
    for frame, changed in ((FRAME, []), (spoken, [box])):
        apart = np.abs(
            warp.moved(frame, pose, kept=kept, changed=changed).i420.astype(int) - warp.moved(frame, pose).i420
        )
        assert np.percentile(apart, 99) <= 1 and (changed or apart.max() < 24)
    fresh = warp.moved(spoken, pose, kept=warp.keep(drawn)).i420
    apart = np.abs(fresh.astype(int) - warp.moved(spoken, pose, kept=kept, changed=[box]).i420)
    assert np.percentile(apart, 95) <= 16  # of noise, four pixels of which do not go quite the same way


@pytest.mark.parametrize(("width", "height"), [(SIDE + 2, SIDE), (SIDE + 4, SIDE - 2), (SIDE - 90, SIDE), (44, 44)])
def test_a_picture_of_any_even_size_is_kept(seen: Face, width: int, height: int) -> None:
    across, down = (np.clip(np.arange(length) - 4, 0, SIDE - 1) for length in (width, height))
    picture = frame(np.ascontiguousarray(face(SIDE)[down][:, across]))
    moves, pose = FaceWarp(seen.points + np.float32(4), relief(seen), (width, height)), Pose(roll=0.03, x=0.02, y=0.02)
    kept = moves.moved(picture, pose, kept=moves.keep(picture.i420)).i420.astype(int)
    assert np.percentile(np.abs(kept - moves.moved(picture, pose).i420), 99) <= 1


@pytest.mark.parametrize("width", [SIDE, SIDE + 6])
@pytest.mark.parametrize("pose", [Pose(yaw=0.02, x=0.004), Pose(roll=0.03, x=0.06)])
def test_alpha_that_is_kept_moves_as_alpha_that_is_not(seen: Face, width: int, pose: Pose) -> None:
    alpha = np.zeros((SIDE, width), np.uint8)
    cv2.fillConvexPoly(alpha, cv2.convexHull(np.rint(seen.points).astype(np.int32)), 255)
    alpha = cv2.GaussianBlur(alpha, (9, 9), 2)
    picture = frame(np.ascontiguousarray(np.resize(face(SIDE), (SIDE, width, 3))), alpha)
    moves = FaceWarp(seen.points, relief(seen), (width, SIDE))
    kept, fresh = (
        moves.moved(picture, pose, kept=moves.keep(picture.i420, alpha)).alpha,
        moves.moved(picture, pose).alpha,
    )
    assert kept is not None and fresh is not None and np.abs(fresh.astype(int) - alpha).max() > 20
    assert np.percentile(np.abs(kept.astype(int) - fresh), 99) <= 1 and np.abs(kept.astype(int) - fresh).max() <= 12


def test_where_pictures_differ_is_found_in_all_planes() -> None:
    before, size = FRAME.i420, (SIDE, SIDE)
    assert changed_box(planes_of(before, size), planes_of(before, size)) is None
    after = before.copy()
    luma, _, red = planes_of(after, size)
    luma[101, 31] += 1
    red[80, 40] -= 1
    assert changed_box(planes_of(before, size), planes_of(after, size)) == Box(30, 100, 82, 162)


def test_a_glance_moves_irises_and_no_head(warp: FaceWarp, seen: Face) -> None:
    glance = Pose(gaze_x=0.011)
    changed = np.abs(shown(warp.moved(FRAME, glance)).astype(int) - shown(FRAME)).max(2) > 20
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert rows.min() > seen.points[10, 1] and rows.max() < seen.points[1, 1]
    assert columns.min() > seen.points[:, 0].min() and columns.max() < seen.points[:, 0].max()
    blind = FaceWarp(seen.points, relief(seen), (SIDE, SIDE), eyes=False)
    left_alone = np.abs(shown(blind.moved(FRAME, glance)).astype(int) - shown(FRAME))
    assert left_alone.mean() < 0.4 and np.abs(shown(warp.moved(FRAME, glance)).astype(int) - shown(FRAME)).max() > 40


def test_moods_set_the_face_a_little(warp: FaceWarp, net: FaceNet, seen: Face) -> None:
    def found(mood: Mood) -> np.ndarray:
        made = warp.moved(FRAME, AS_IT_IS, mood)
        return net.faces(np.ascontiguousarray(shown(made)[:, :, ::-1]))[0].points

    assert warp.moved(FRAME, AS_IT_IS, "neutral") is FRAME
    warm, serious = found("warm"), found("serious")
    corners, brows = [61, 291], [55, 285]
    eyes = [33, 263]
    lifted = (serious - warm)[corners, 1].mean() - (serious - warm)[eyes, 1].mean()
    assert 0.008 * width(seen) < lifted < 0.06 * width(seen)
    assert (serious - warm)[brows, 1].mean() > 0.002 * width(seen)
    assert np.abs(warm - seen.points).max() < 0.06 * width(seen)


@pytest.mark.parametrize("corner", [(-120, -90), (150, 170)])
def test_a_head_that_the_picture_cuts_moves_too(seen: Face, corner: tuple[int, int]) -> None:
    points = seen.points + np.array(corner, np.float32)
    picture = np.asarray(
        cv2.warpAffine(
            face(SIDE),
            np.float32([[1, 0, corner[0]], [0, 1, corner[1]]]),
            (SIDE, SIDE),
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.uint8,
    )
    before = frame(picture)
    moved = FaceWarp(points, relief(seen), (SIDE, SIDE)).moved(before, POSES[-1])
    assert 0.2 < np.abs(shown(moved).astype(int) - shown(before)).mean() < 25
    away = FaceWarp(points + 4000, relief(seen), (SIDE, SIDE)).moved(before, POSES[-1])
    assert away is before


@pytest.mark.parametrize("pose", [Pose(0.03, -0.03, 0.02, -0.01, 0.01, 0.02), Pose(x=0.2)], ids=["usual", "far"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_persons_share_moves_as_its_colours_do(warp: FaceWarp, pose: Pose, kept: bool) -> None:
    """A white person's luma is its share: at every edge the two must stay one, or a rim is seen before another background."""
    y, x = np.mgrid[:SIDE, :SIDE]
    away = np.hypot((x - SIDE / 2) / 0.3, (y - SIDE / 2) / 0.4) + 6 * np.sin(x / 5) * np.sin(y / 7)
    alpha = np.clip((SIDE - away) * 12, 0, 255).astype(np.uint8)
    planes = np.full(SIDE * SIDE * 3 // 2, 128, np.uint8)
    planes[: SIDE * SIDE] = alpha.reshape(-1)
    planes.flags.writeable = alpha.flags.writeable = not kept
    moved = warp.moved(VideoFrame(planes, SIDE, SIDE, 0, alpha=alpha), pose)
    assert moved.alpha is not None and not np.array_equal(moved.alpha, alpha)
    assert np.array_equal(moved.i420[: SIDE * SIDE].reshape(SIDE, SIDE), moved.alpha)
