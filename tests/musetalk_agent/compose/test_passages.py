"""Where clips go over into each other: where they look alike, soon, and as slowly as they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.passages import enter, leave, sketch
from musetalk_agent.compose.timeline import Passage, ShownFace, Timeline
from musetalk_agent.engines.pattern import pattern_bundle

STILL = HeadMotion(0, 25)


def clip(levels: list[int]) -> Bundle:
    """Flat frames of these grey levels."""
    plain = pattern_bundle(64, 64, 25)
    repeated = {n: np.repeat(getattr(plain, n), len(levels), 0) for n in ("landmarks", "boxes", "faces")}
    frames = np.repeat(np.array(plain.frames), len(levels), 0)
    frames[:, :64] = np.array(levels, np.uint8)[:, None, None]
    return replace(plain, frames=frames, **repeated)


def face(bundle: Bundle) -> ShownFace:
    return ShownFace(Compositor(bundle), len(bundle))


def test_a_gesture_begins_where_the_idle_clip_looks_like_its_beginning() -> None:
    idle, wave = clip(list(range(50, 70))), clip([58, 70, 90, 110, 90, 66])
    home, played = face(idle), face(wave)
    timeline, sketches = Timeline(home, STILL), {home: sketch(idle), played: sketch(wave)}
    entered = enter(timeline, 3, sketches, played)
    assert (entered.begin, entered.frame) == (8, 0), "the frame of level 58"
    assert entered.fade == 3, "the least"
    left = leave(timeline, entered, sketches, played)
    assert left.frame == 16, "home to the frame of level 66"
    assert left.begin + left.fade >= entered.begin + 6
    timeline.act(played, entered, left)
    shown = [timeline.at(position).face for position in range(30)]
    assert shown[:8] == [home] * 8 and shown[8] is played and shown[-1] is home


def test_what_differs_more_takes_longer_and_has_an_end() -> None:
    idle = clip([50, 51, 52, 53, 54, 55])
    fades = []
    for level in (60, 75, 250):
        other = clip([level, level + 1, level + 2])
        home, played = face(idle), face(other)
        fades.append(enter(Timeline(home, STILL), 0, {home: sketch(idle), played: sketch(other)}, played).fade)
    assert fades[0] < fades[1] < fades[2] == 60


def test_a_head_that_goes_further_takes_longer() -> None:
    """Stripes differ no more at two pixels than at ten: it is the way that counts."""
    mesh = np.random.default_rng(0).uniform(8, 56, (468, 2)).astype(np.float32)

    def striped(shift: int) -> Bundle:
        made = clip([60] * 3)
        frames, landmarks = np.array(made.frames), np.array(made.landmarks)
        frames[:, :64] = 60 + 4 * ((np.arange(64) - shift) % 4 < 2)
        landmarks[:] = mesh + np.float32([shift, 0])
        return replace(made, frames=frames, landmarks=landmarks)

    fades = []
    for shift in (2, 10):
        idle, other = striped(0), striped(shift)
        home, played = face(idle), face(other)
        fades.append(enter(Timeline(home, STILL), 0, {home: sketch(idle), played: sketch(other)}, played).fade)
    assert 3 < fades[0] < fades[1] < 60


def test_a_passage_is_not_broken_by_the_next_one() -> None:
    idle, wave = clip([50, 51, 52, 53]), clip([80, 81, 82, 83, 84, 85])
    home, played, again = face(idle), face(wave), face(wave)
    timeline = Timeline(home, STILL)
    sketches = {home: sketch(idle), played: sketch(wave), again: sketch(wave)}
    first = enter(timeline, 0, sketches, played)
    timeline.act(played, first, None)
    second = enter(timeline, first.begin + 1, sketches, again)
    assert second.begin >= first.begin + first.fade
    timeline.act(again, second, None)
    back = enter(timeline, second.begin + second.fade, sketches, home)
    timeline.act(home, back, None)
    assert timeline.at(back.begin + back.fade).face is home


def test_a_look_says_what_goes_away_and_how_far_it_is() -> None:
    home, played = (ShownFace(Compositor(pattern_bundle(64, 64, 25)), count) for count in (4, 9))
    timeline = Timeline(home, STILL)
    timeline.act(played, Passage(5, 2, 3), Passage(10, 1, 2))
    shares = [(look.leaving.share if (look := timeline.at(p)).leaving else None) for p in range(4, 14)]
    assert shares == [None, 0.25, 0.5, 0.75, None, None, 1 / 3, 2 / 3, None, None]
    assert [timeline.at(p).idle_index for p in range(5, 10)] == [2, 3, 4, 5, 6]
    leaving = timeline.at(11).leaving
    assert leaving is not None and (leaving.face, leaving.idle_index) == (played, 8), "its last frame stays"
    fades = {id(look.leaving.fade) for p in (5, 6, 7) if (look := timeline.at(p)).leaving is not None}
    assert len(fades) == 1, "one flow for a passage"


def test_a_long_clip_is_sampled() -> None:
    made = sketch(clip([n % 200 for n in range(500)]))
    assert len(made.pictures) <= 200 and made.stride == 3
    assert abs(float(made.pictures[made.row(499)].mean()) - 99) <= 3


def test_a_still_picture_is_played_once_for_three_and_a_half_seconds() -> None:
    idle = clip([50, 51, 52, 53])
    still = Bundle(**{**vars(clip([60, 61, 62])), "relief": np.zeros(468, np.float32)})
    home, played = face(idle), face(still)
    sketches = {home: sketch(idle), played: sketch(still)}
    timeline = Timeline(home, STILL)
    entered = enter(timeline, 0, sketches, played)
    left = leave(timeline, entered, sketches, played)
    assert 80 <= left.begin + left.fade - entered.begin <= 88
