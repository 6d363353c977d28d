from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.face import FACE_LOGIT, LEFT_EYE, RIGHT_EYE, Detection, Face, FaceNet
from musetalk_agent.avatars.face_track import NOD, TURN, FaceTrack, FaceTracker, FrameObservation, finish_track
from musetalk_agent.avatars.quality_report import closed_mouth, face_px, make_report
from musetalk_agent.errors import NoFaceInAvatar
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

from .clips import face, flat, moving, noise
from .test_shots import other_shot


@pytest.fixture(scope="module")
def net(models: ModelStore) -> FaceNet:
    return FaceNet(models)


def track(net: FaceNet, pictures: list[Pixels]) -> FaceTrack:
    tracker = FaceTracker(net)
    for picture in pictures:
        tracker.push(picture)
    return finish_track(tracker, 25)


def warnings(found: FaceTrack, picture: Pixels) -> set[str]:
    size = (picture.shape[1], picture.shape[0])
    return {warning.code for warning in make_report("x", found, size, size, 25, still=False).warnings}


def beside(left: Pixels, right: Pixels) -> Pixels:
    height = max(left.shape[0], right.shape[0])
    canvas = flat(127, left.shape[1] + right.shape[1], height)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], left.shape[1] :] = right
    return canvas


def test_points_scale_and_move_with_the_picture(net: FaceNet) -> None:
    small, large = track(net, [face(320)]).points[0], track(net, [face(640)]).points[0]
    assert np.abs(large / 2 - small).max() < 0.012 * 320
    shifted = track(net, [beside(flat(127, 100, 320), face(320))]).points[0]
    assert np.abs(shifted - [100, 0] - small).mean() < 1.0


def test_where_the_eyes_and_the_mouth_of_the_demo_avatar_are(net: FaceNet) -> None:
    points = track(net, [face(640)]).points[0]
    assert np.allclose(points[LEFT_EYE], [256, 250], atol=9)
    assert np.allclose(points[RIGHT_EYE], [423, 254], atol=9)
    assert np.allclose(points[[13, 14]].mean(0), [335, 360], atol=12)


def test_a_tilted_face_is_found(net: FaceNet) -> None:
    turn = cv2.getRotationMatrix2D((160, 160), 35, 1.0)
    tilted = cv2.warpAffine(face(320), turn, (320, 320), borderMode=cv2.BORDER_REPLICATE)
    upright = track(net, [face(320)]).points[0]
    found = track(net, [np.asarray(tilted, np.uint8)]).points[0]
    assert np.abs(found - (upright @ turn[:, :2].T + turn[:, 2])).mean() < 3.0


def test_the_face_is_followed(net: FaceNet) -> None:
    points = track(net, moving(20, step=2.0)).points
    steps = np.diff(points[:, 6, 0])
    assert np.allclose(steps[2:-2], 2.0, atol=0.6)


def test_the_largest_face_is_followed_and_the_other_reported(net: FaceNet) -> None:
    picture = beside(face(160), face(320))
    found = track(net, [picture] * 3)
    assert found.points[0][:, 0].min() > 160
    assert "several_faces" in warnings(found, picture)


def test_frames_without_a_face_get_no_mouth(net: FaceNet) -> None:
    clip = moving(12, step=1.5)
    whole = track(net, clip).points
    for gap in (3, 4, 5, 11):
        clip[gap] = flat(127, 256, 256)
    found = track(net, clip)
    assert found.missing == [3, 4, 5, 11]
    assert np.abs(found.points - whole).mean() < 1.0
    assert "frames_without_face" in warnings(found, clip[0])
    assert np.flatnonzero(found.mouths() == 0).tolist() == [3, 4, 5, 11]
    assert found.mouths()[[0, 2, 6, 8, 10]].tolist() == [0.75, 0.25, 0.25, 0.75, 0.25]


def test_a_face_that_fades_to_black_is_missing_before_it_is_gone(net: FaceNet) -> None:
    strength = [1.0] * 8 + [0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.0]
    clip = [np.asarray(picture * s, np.uint8) for picture, s in zip(moving(len(strength)), strength, strict=True)]
    assert track(net, clip).missing == [9, 10, 11, 12, 13, 14]


def turned_copy(picture: Pixels, turns: int) -> Pixels:
    return np.ascontiguousarray(np.rot90(picture, turns))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_lying_face_is_found_in_its_own_rotation_and_reported(net: FaceNet, turns: int) -> None:
    standing, lying = track(net, [face(320)] * 2), track(net, [turned_copy(face(320), turns)] * 2)
    x, y = lying.points[0].T
    back = {1: (319 - y, x), 2: (319 - x, 319 - y), 3: (y, 319 - x)}[turns]
    assert np.abs(np.stack(back, 1) - standing.points[0]).mean() < 4.0
    assert "face_lying" in warnings(lying, face(320)) and "face_lying" not in warnings(standing, face(320))
    assert abs(face_px(lying.points) - face_px(standing.points)) < 6


def test_a_tilted_head_does_not_lie(net: FaceNet) -> None:
    turn = cv2.getRotationMatrix2D((160, 160), 38, 1.0)
    tilted = cv2.warpAffine(face(320), turn, (320, 320), borderMode=cv2.BORDER_REPLICATE)
    assert "face_lying" not in warnings(track(net, [np.asarray(tilted, np.uint8)]), face(320))


def test_small_faces_are_counted_though_the_quick_detector_misses_them(net: FaceNet) -> None:
    picture = flat(127, 1280, 720)
    for left, side in ((100, 240), (500, 200), (900, 220)):
        picture[250 : 250 + side, left : left + side] = face(side)
    rgb = np.ascontiguousarray(picture[:, :, ::-1])
    assert len(net.faces(rgb)) == 3
    found = track(net, [picture] * 2)
    assert found.points[0][:, 0].max() < 400 and "several_faces" in warnings(found, picture)


def test_a_drawing_is_a_face_when_there_is_no_other(net: FaceNet) -> None:
    """One of hard lines and few colours, of which the mesh is unsure; it counts for nothing beside a photograph."""
    drawn = np.asarray(cv2.stylization(face(256), sigma_s=40, sigma_r=0.45), np.uint8)
    (alone,) = net.faces(np.ascontiguousarray(drawn[:, :, ::-1]))
    assert alone.score < FACE_LOGIT and np.abs(alone.points - track(net, [face(256)]).points[0]).mean() < 12
    assert len(net.faces(np.ascontiguousarray(beside(drawn, face(256))[:, :, ::-1]))) == 1


def test_what_the_mesh_calls_no_face_is_none(net: FaceNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that also sees a face in the background, larger and surer than the real one."""
    picture = beside(face(256), noise(256, 256))
    rgb = np.ascontiguousarray(picture[:, :, ::-1])
    real = net._detectors[0].find
    ghost = Detection(384.0, 128.0, 250.0, 0.0, 9.0)
    monkeypatch.setattr(net._detectors[0], "find", lambda rgb: [ghost, *real(rgb)])
    assert len(net.faces(rgb)) == 1
    found = track(net, [picture] * 2)
    assert found.points[0][:, 0].max() < 256 and "several_faces" not in warnings(found, picture)
    monkeypatch.setattr(net._detectors[0], "find", lambda rgb: [ghost])  # the next detector is asked
    assert len(net.faces(rgb, thorough=False)) == 1


def test_a_lost_face_is_found_again_at_its_place_though_a_larger_one_is_there_now(net: FaceNet) -> None:
    before, after = beside(face(320), face(300)), beside(face(306), face(320))
    after = np.asarray(cv2.resize(after, (620, 320)), np.uint8)
    found = track(net, [before, before, flat(127, 620, 320), after, after])
    assert found.missing == [2]
    assert found.points[-1][:, 0].max() < 310
    assert (
        track(net, [after]).points[0][:, 0].min() > 310
    )  # it is the larger one to somebody who has not seen the clip before


def test_another_face_that_takes_over_in_the_same_picture_is_another_shot(net: FaceNet) -> None:
    """Two stand side by side; the one that is followed walks away. After a long stretch without a face it is the same again."""
    stripes = np.where(np.arange(900) // 90 % 2, 220, 20).astype(np.uint8)
    wide = np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (400, 900, 3)))
    left, right = wide.copy(), wide.copy()
    left[100:250, 100:250] = face(150)
    right[100:250, 600:750] = face(150)
    both = left.copy()
    both[:, 450:] = right[:, 450:]
    found = track(net, [*[both] * 3, *[right.copy() for _ in range(7)]])
    assert (found.start, found.end, found.cuts) == (3, 10, (3,)) and found.points[0][:, 0].min() > 600
    back = track(net, [left, left.copy(), *[wide.copy() for _ in range(14)], *[right.copy() for _ in range(16)]])
    assert back.cuts == () and len(back.points) == 32


def test_a_face_that_jumps_or_grows_at_once_is_another_one(net: FaceNet) -> None:
    """The picture itself hardly changes: a grey one stands for all frames."""
    (seen,) = net.faces(np.ascontiguousarray(face(256)[:, :, ::-1]))
    grey = np.full((48, 48), 90, np.uint8)

    def cuts_of(scale: float, shift: float, gap: int) -> tuple[int, ...]:
        other = Face((seen.points * scale + shift).astype(np.float32), 40.0)
        tracker = FaceTracker(net)
        tracker.observations = [FrameObservation(seen, 50.0, grey) for _ in range(4)]
        tracker.observations += [FrameObservation(None, 0.0, grey) for _ in range(gap)]
        tracker.observations += [FrameObservation(other, 50.0, grey) for _ in range(40)]
        return finish_track(tracker, 25).cuts

    assert cuts_of(1, 120, 0) == (4,) and cuts_of(1, 120, 5) == (9,) and cuts_of(1.8, -60, 0) == (4,)
    assert cuts_of(1, 120, 14) == () and cuts_of(1.1, 20, 0) == ()


def test_both_detectors_are_asked_when_faces_are_counted(net: FaceNet, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = np.ascontiguousarray(beside(face(320), face(320))[:, :, ::-1])
    quick = net._detectors[0].find
    monkeypatch.setattr(net._detectors[0], "find", lambda rgb: quick(rgb)[:1])
    assert len(net.faces(rgb)) == 2 and len(net.faces(rgb, thorough=False)) == 1


def test_another_shot_is_cut_away_and_reported(net: FaceNet) -> None:
    clip = [*moving(6), *[other_shot()] * 8]
    found = track(net, clip)
    assert (found.start, found.end, found.cuts, found.total) == (6, 14, (6,), 14)
    assert len(found.points) == 8 and np.abs(found.points - track(net, clip[6:]).points).mean() < 0.5
    (reported,) = [
        w.message for w in make_report("x", found, (256, 256), (256, 256), 25, False).warnings if w.code == "scene_cut"
    ]
    assert "at frame 6;" in reported and "frames 6 to 13" in reported


@pytest.mark.parametrize("count", [2, 7])
def test_exactly_half_is_enough_and_fewer_are_not(net: FaceNet, count: int) -> None:
    faces = [face()] * count
    assert track(net, [*faces, *[flat(127, 256, 256)] * count]).missing == list(range(count, 2 * count))
    with pytest.raises(NoFaceInAvatar) as caught:
        track(net, [*faces, *[flat(127, 256, 256)] * (count + 1)])
    assert f"frames {count}–{2 * count}" in caught.value.detail
    assert caught.value.value == count + 1


@pytest.mark.parametrize("picture", [noise(), flat(), flat(0), flat(255)], ids=["noise", "grey", "black", "white"])
def test_no_face_where_there_is_none(net: FaceNet, picture: Pixels) -> None:
    with pytest.raises(NoFaceInAvatar):
        track(net, [picture] * 2)


def test_a_small_face_in_a_large_picture_is_found_and_reported(net: FaceNet) -> None:
    picture = flat(127, 1280, 720)
    picture[200:360, 600:760] = face(160)
    found = track(net, [picture])
    assert 45 < face_px(found.points) < 75
    assert "face_small" in warnings(found, picture)


def test_a_face_at_the_edge_is_reported(net: FaceNet) -> None:
    picture = face(320)[:, 120:]
    assert "face_at_edge" in warnings(track(net, [np.ascontiguousarray(picture)]), picture)
    assert "face_at_edge" not in warnings(track(net, [face(320)]), face(320))


@pytest.mark.parametrize(
    ("turn", "nod", "warned"), [(35, 0, False), (60, 0, True), (0, 25, False), (0, 50, True), (0, 0, False)]
)
def test_a_clip_is_warned_of_whose_head_turns_or_nods_too_far(
    net: FaceNet, turn: float, nod: float, warned: bool
) -> None:
    """The nose's tip is put where a head turned so far has it; most of the frames look at the camera."""
    still = track(net, [face(320)]).points[0]
    points = np.repeat(still[None], 40, 0)
    apart = float(np.linalg.norm(still[[356, 454]].mean(0) - still[[127, 234]].mean(0)))
    points[30:, 1, 0] += TURN * np.tan(np.radians(turn)) * apart
    points[30:35, 1, 1] += NOD * np.tan(np.radians(nod)) * apart
    points[35:, 1, 1] -= NOD * np.tan(np.radians(nod)) * apart
    assert ("head_turns_far" in warnings(FaceTrack(points, [], 0.0), face(320))) == warned


def test_profile_is_recognised_by_where_the_nose_is(net: FaceNet) -> None:
    found = track(net, [face(320)])
    assert "face_in_profile" not in warnings(found, face(320))
    turned = found.points.copy()
    turned[:, 1] = turned[:, 234] * 0.8 + turned[:, 454] * 0.2
    assert "face_in_profile" in warnings(FaceTrack(turned, [], 0.0), face(320))


def test_lips_closed_or_not(net: FaceNet) -> None:
    points = track(net, [face(320)]).points
    assert closed_mouth(points).all()
    points[:, 14, 1] += 10
    assert not closed_mouth(points).any()


def test_one_euro_steadies_a_face_in_camera_noise(net: FaceNet) -> None:
    generator = np.random.default_rng(0)
    noisy = [np.clip(face() + generator.normal(0, 4, (256, 256, 3)), 0, 255).astype(np.uint8) for _ in range(20)]
    tracker = FaceTracker(net)
    for picture in noisy:
        tracker.push(picture)
    raw = np.stack([points for points in tracker.meshes if points is not None])
    smooth = finish_track(tracker, 25).points
    assert np.abs(np.diff(smooth, 2, axis=0)).mean() < 0.5 * np.abs(np.diff(raw, 2, axis=0)).mean()
