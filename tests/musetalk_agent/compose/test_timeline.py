"""Which face is shown when: decided positions stay, what was to follow is replaced."""

from __future__ import annotations

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import AS_IT_IS, HeadMotion
from musetalk_agent.compose.timeline import Passage, ShownFace, Timeline
from musetalk_agent.engines.pattern import pattern_bundle

STILL = HeadMotion(0, 25)

COMPOSITOR = Compositor(pattern_bundle(64, 64, 25))


def faces(*frames: int) -> list[ShownFace]:
    return [ShownFace(COMPOSITOR, count) for count in frames]


def test_a_face_begins_with_its_first_frame_and_the_one_before_is_shown_until_then() -> None:
    old, new = faces(3, 4)
    timeline = Timeline(old, STILL)
    timeline.show(new, 7)
    looks = [timeline.at(position) for position in range(12)]
    assert [look.face for look in looks] == [old] * 7 + [new] * 5
    assert [look.idle_index for look in looks] == [0, 1, 2, 1, 0, 1, 2, 0, 1, 2, 3, 2]
    assert timeline.newest is new


def test_the_last_change_counts() -> None:
    old, one, two = faces(1, 1, 1)
    timeline = Timeline(old, STILL)
    timeline.show(one, 5)
    timeline.show(two, 5)
    assert [timeline.at(position).face for position in (4, 5, 6)] == [old, two, two]
    timeline.show(one, 3)
    assert [timeline.at(position).face for position in (2, 3, 9)] == [old, one, one]


def test_what_is_past_is_forgotten_and_the_loop_goes_on() -> None:
    old, new = faces(3, 5)
    timeline = Timeline(old, STILL)
    timeline.show(new, 4)
    before = [timeline.at(position).idle_index for position in range(4, 20)]
    timeline.forget(6)
    assert [timeline.at(position).idle_index for position in range(4, 20)] == before
    assert timeline.at(0).face is new, "nothing asks for it any more"


def test_faces_of_the_same_clip_are_distinguished() -> None:
    one, other = faces(1, 1)
    assert Timeline(one, STILL).at(0) != Timeline(other, STILL).at(0)


def test_a_still_picture_has_a_pose_in_passages_too_and_a_clip_has_none() -> None:
    still = Bundle(**{**vars(pattern_bundle(64, 64, 25)), "relief": np.zeros(468, np.float32)})
    picture, (clip,) = ShownFace(Compositor(still), 5), faces(30)
    motion = HeadMotion(3, 25)
    timeline = Timeline(picture, motion)
    timeline.act(clip, Passage(100, 0, 4), Passage(120, 2, 4))
    before, into, played, back = (timeline.at(position) for position in (99, 101, 110, 121))
    assert before.pose == motion.live_pose(99) != AS_IT_IS
    assert before.idle_index == round(4 * motion.closure(99)), "not a frame of a loop, but how far the eyes are closed"
    assert into.pose == AS_IT_IS and into.leaving is not None and into.leaving.pose == motion.live_pose(101)
    assert played.pose == AS_IT_IS and played.leaving is None
    assert back.pose == motion.live_pose(121) and back.leaving is not None and back.leaving.pose == AS_IT_IS
    assert picture.length == 88 and clip.length == 30
