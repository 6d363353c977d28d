from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.avatars.face import FaceNet, Points
from musetalk_agent.avatars.face_track import (
    MOUTH_CHECK_EVERY,
    FaceTrack,
    FaceTracker,
    OneEuroFilter,
    covered_frames,
    finish_track,
)
from musetalk_agent.avatars.quality_report import make_report
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

from .clips import face, moving

FILTER = OneEuroFilter(min_cutoff_hz=1.5, beta=30.0, speed_cutoff_hz=6.0)


def test_a_constant_stays_what_it_is() -> None:
    track = np.full((50, 3, 2), 7.25, np.float32)
    assert np.allclose(FILTER.zero_phase(track, 25), track)


def test_first_step_follows_the_published_formula() -> None:
    """Casiez et al.: alpha = 1 / (1 + rate/(2π·cutoff)), cutoff = min_cutoff + beta·|filtered speed|."""
    values, rate = np.array([[0.0], [0.1]], np.float32), 25.0
    speed = 0.1 * rate / (1 + rate / (2 * math.pi * 6.0))
    cutoff = 1.5 + 30.0 * speed
    assert FILTER.forward(values, rate)[1, 0] == pytest.approx(0.1 / (1 + rate / (2 * math.pi * cutoff)), rel=1e-5)


def test_noise_at_rest_shrinks() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (200, 1)).astype(np.float32)
    assert FILTER.zero_phase(noise, 25).std() < 0.5 * noise.std()


def test_a_movement_is_neither_early_nor_late() -> None:
    """The middle of a symmetric bump stays where it was, and most of its height is kept; one way alone trails behind."""
    time = np.arange(60)
    bump = np.exp(-(((time - 30) / 3.0) ** 2)).astype(np.float32)[:, None] * 0.08
    smooth = FILTER.zero_phase(bump, 25)
    assert np.argmax(smooth) == 30
    assert smooth.max() > 0.9 * bump.max()
    middle = (time * smooth[:, 0]).sum() / smooth.sum()
    late = FILTER.forward(bump, 25)[:, 0]
    assert abs(middle - 30) < 0.05
    assert (time * late).sum() / late.sum() > 30.2


def test_one_frame_passes() -> None:
    assert FILTER.zero_phase(np.ones((1, 468, 2), np.float32), 25).shape == (1, 468, 2)


SIDE = 512
CHEEKS_AND_JAW = (
    234,
    93,
    132,
    58,
    172,
    136,
    150,
    149,
    176,
    148,
    152,
    377,
    400,
    378,
    379,
    365,
    397,
    288,
    361,
    323,
    454,
    5,
)
LENSES = ((33, 133), (362, 263))


@pytest.fixture(scope="module")
def net(models: ModelStore) -> FaceNet:
    return FaceNet(models)


@pytest.fixture(scope="module")
def points(net: FaceNet) -> Points:
    return net.faces(np.ascontiguousarray(face(SIDE)[:, :, ::-1]))[0].points


def track(net: FaceNet, pictures: list[Pixels]) -> FaceTrack:
    tracker = FaceTracker(net)
    for picture in pictures:
        tracker.push(picture)
    return finish_track(tracker, 25)


def place(points: Points) -> tuple[int, int, float]:
    """The middle of the lips, and the distance of the eyes, in pixels."""
    x, y = points[[13, 14]].mean(0)
    return round(float(x)), round(float(y)), float(np.linalg.norm(points[33] - points[263]))


def mask(picture: Pixels, points: Points) -> Pixels:
    """A blue mask with folds, from the nose to below the chin."""
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round(points[list(CHEEKS_AND_JAW)]).astype(np.int32)], 255)
    folds = 12 * np.sin(np.arange(picture.shape[0]) / 3.0)[:, None, None]
    cloth = np.clip(np.array([190, 150, 90]) + folds, 0, 255).astype(np.uint8) * np.ones_like(picture)
    return np.where(inside[..., None] > 0, cloth, picture).astype(np.uint8)


def fingers(picture: Pixels, points: Points) -> Pixels:
    """Four fingers in the colour of the cheeks, one beside the other across the mouth, round and with shadows between them."""
    x, y, eyes = place(points)
    skin = picture[int(points[50, 1]), int(points[50, 0])].astype(np.float32)
    out = picture.astype(np.float32)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    along = ((columns - x) * np.cos(0.25) + (rows - y) * np.sin(0.25)) / eyes
    across = ((rows - y) * np.cos(0.25) - (columns - x) * np.sin(0.25)) / eyes
    for off in (-0.255, -0.085, 0.085, 0.255):
        from_axis = np.hypot(np.maximum(np.abs(along + 0.15) - 0.6, 0), across - off) / 0.0925
        shade = (1 - 0.35 * np.minimum(from_axis, 1) ** 2)[..., None]
        out = np.where(
            from_axis[..., None] < 1, skin * shade, out * (1 - 0.3 * np.exp(-((from_axis - 1) ** 2) * 8))[..., None]
        )
    return np.clip(out, 0, 255).astype(np.uint8)


def caption(picture: Pixels, points: Points) -> Pixels:
    """White words on a black bar."""
    x, y, eyes = place(points)
    out = picture.copy()
    cv2.rectangle(out, (0, round(y - 0.22 * eyes)), (picture.shape[1], round(y + 0.22 * eyes)), (20, 20, 20), -1)
    cv2.putText(
        out, "WHAT SOMEBODY SAYS", (round(x - eyes), y + 4), cv2.FONT_HERSHEY_SIMPLEX, eyes / 170, (255, 255, 255), 1
    )
    return out


def cup(picture: Pixels, points: Points) -> Pixels:
    """A white cup before the mouth."""
    x, y, eyes = place(points)
    out = picture.copy()
    cv2.ellipse(
        out, (x, round(y + 0.25 * eyes)), (round(0.42 * eyes), round(0.5 * eyes)), 0, 0, 360, (235, 230, 230), -1
    )
    return out


def letters(picture: Pixels, points: Points) -> Pixels:
    """Large white words without a bar, between which skin shows."""
    x, y, eyes = place(points)
    out, size = picture.copy(), eyes / 63
    for word, down in (("SALE", 0.05), ("TODAY", 0.28)):
        (width, _), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, size, round(4 * size))
        at = round(x - width / 2), round(y + down * eyes)
        cv2.putText(out, word, at, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), max(2, int(5 * size)), cv2.LINE_AA)
    return out


def sunglasses(picture: Pixels, points: Points) -> Pixels:
    out = picture.copy()
    for outer, inner in LENSES:
        x, y = points[[outer, inner]].mean(0)
        reach = 0.85 * float(np.linalg.norm(points[outer] - points[inner]))
        cv2.ellipse(
            out, (round(float(x)), round(float(y))), (round(reach), round(0.75 * reach)), 0, 0, 360, (15, 15, 15), -1
        )
    return out


def grey(picture: Pixels, points: Points) -> Pixels:
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None], 3, 2)


def mirrored(picture: Pixels, points: Points) -> Pixels:
    return np.ascontiguousarray(picture[:, ::-1])


def dim(picture: Pixels, points: Points) -> Pixels:
    return np.asarray(picture * 0.4, np.uint8)


def drawing(picture: Pixels, points: Points) -> Pixels:
    return np.asarray(cv2.stylization(picture, sigma_s=10, sigma_r=0.15), np.uint8)


def same(picture: Pixels, points: Points) -> Pixels:
    return picture


@pytest.mark.parametrize("cover", [mask, fingers, caption, cup, letters])
def test_a_covered_mouth_of_a_still_is_reported_and_gets_none(
    net: FaceNet, points: Points, cover: Callable[[Pixels, Points], Pixels]
) -> None:
    found = track(net, [cover(face(SIDE), points)])
    assert found.covered == [0] and found.mouths().tolist() == [0.0]
    reported = {w.code: w.message for w in make_report("x", found, (SIDE, SIDE), (SIDE, SIDE), 25, True).warnings}
    assert "1 of 1 frames" in reported["mouth_hidden"] and "not be seen to speak" in reported["mouth_hidden"]
    assert "mouth_open" not in reported  # there is no mouth that could be


@pytest.mark.parametrize("change", [same, sunglasses, grey, mirrored, dim, drawing])
def test_a_mouth_that_is_seen_is_not_covered(
    net: FaceNet, points: Points, change: Callable[[Pixels, Points], Pixels]
) -> None:
    found = track(net, [change(face(SIDE), points)])
    assert found.covered == [] and found.mouths().tolist() == [1.0]


def test_a_hand_that_comes_and_goes(net: FaceNet, points: Points) -> None:
    """Covered are its frames and, as only every fourth is looked at, a few beside them; the mouth fades out and in around them."""
    clip = moving(48, SIDE, step=0.0)
    hidden = range(16, 32)
    for k in hidden:
        clip[k] = fingers(clip[k], points)
    found = track(net, clip)
    assert set(hidden) <= set(found.covered) <= set(range(16 - MOUTH_CHECK_EVERY, 32 + MOUTH_CHECK_EVERY))
    mouths = found.mouths()
    assert not mouths[found.covered].any() and mouths[:8].min() == mouths[-8:].min() == 1.0
    made = make_report("x", found, (SIDE, SIDE), (SIDE, SIDE), 25, False)
    assert made.frames_mouth_hidden == found.covered and made.closed_mouth_frames == 48 - len(found.covered)
    assert "it rests there" in next(w.message for w in made.warnings if w.code == "mouth_hidden")


def covered(total: int, looked: dict[int, float], turn: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    """Of a still head, or of one that turns by `turn` degrees `[total]`."""
    angles = np.zeros((total, 2), np.float32)
    angles[:, 0] = np.radians(0 if turn is None else turn)
    return covered_frames(total, looked, angles)


def test_one_low_look_among_several_says_nothing() -> None:
    assert not covered(20, {0: 150.0, 4: 20.0, 8: 150.0, 12: 150.0, 16: 150.0}).any()
    assert np.flatnonzero(covered(20, {0: 150.0, 4: 20.0, 8: 20.0, 12: 150.0, 16: 150.0})).tolist() == [*range(1, 12)]
    assert covered(3, {0: 20.0}).all()


@pytest.mark.parametrize(("evidence", "alone", "hidden"), [(60.0, 0.0, True), (60.0, 4.0, False), (45.0, 6.0, False)])
def test_in_a_picture_alone_the_mouth_without_the_eyes_counts_too(evidence: float, alone: float, hidden: bool) -> None:
    still = np.zeros((1, 2), np.float32)
    assert covered_frames(1, {0: evidence}, still, alone).tolist() == [hidden]
    assert not covered_frames(8, {0: 60.0, 4: 60.0}, np.zeros((8, 2), np.float32), 0.0).any()


def test_what_is_usual_for_a_clip_raises_the_bar_and_does_so_within_bounds() -> None:
    clear = dict.fromkeys(range(0, 40, 4), 180.0)
    assert np.flatnonzero(covered(40, clear | {20: 100.0, 24: 100.0})).tolist() == [*range(17, 28)]
    assert not covered(40, clear | {20: 125.0, 24: 125.0}).any()
    assert not covered(40, dict.fromkeys(range(0, 40, 4), 90.0) | {20: 60.0, 24: 60.0}).any()
    assert covered(40, dict.fromkeys(range(0, 40, 4), 30.0)).all()
    assert not covered(4, {}).any()


def test_a_head_that_turns_hides_no_mouth() -> None:
    """Seen from the side a mouth gives less: 180 from the front, 75 at 40°, as on real faces."""
    turn = (40 * np.sin(np.arange(160) / 160 * 2 * np.pi)).astype(np.float32)
    seen = {k: 180.0 - 105.0 * abs(float(turn[k])) / 40 for k in range(0, 160, 4)}
    assert not covered(160, seen, turn).any()
    nod = np.stack([np.zeros(160, np.float32), np.radians(turn)], 1)
    assert not covered_frames(160, seen, nod).any()

    hand = {80: 75.0, 84: 75.0}  # from the front, where 180 is usual
    at = np.flatnonzero(covered(160, seen | hand, turn)).tolist()
    assert at == [*range(77, 88)]
    mask = {
        32: 40.0,
        36: 40.0,
        40: 40.0,
        44: 40.0,
        48: 40.0,
    }  # from the side, where 75 is usual: less than any bare mouth gives
    assert np.flatnonzero(covered(160, seen | mask, turn)).tolist() == [*range(29, 52)]


def test_a_hand_before_a_head_that_looked_elsewhere_first() -> None:
    """What is usual is that of the same direction, also where the clip has more looks in others."""
    turn = np.where(np.arange(80) < 48, 35.0, 0.0).astype(np.float32)
    looked = {k: 95.0 if k < 48 else 180.0 for k in range(0, 80, 4)} | {56: 90.0, 60: 90.0}
    assert np.flatnonzero(covered(80, looked, turn)).tolist() == [*range(53, 64)]


def test_a_short_look_aside_hides_no_mouth() -> None:
    turn = np.where(np.abs(np.arange(80) - 40) < 10, 40.0, 0.0).astype(np.float32)
    looked = {k: 75.0 if turn[k] else 180.0 for k in range(0, 80, 4)}
    assert not covered(80, looked, turn).any()
    assert covered(80, looked).any()  # in a head that keeps still it is a hand
