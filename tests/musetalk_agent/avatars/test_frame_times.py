"""Which frame of a clip is shown at each tick of a session, against a slow and obvious model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.avatars.frame_conversion import FrameConverter
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_clips import Animation
from musetalk_agent.avatars.video import VideoClip
from musetalk_agent.avatars.video_decoder import ClipFrame, VideoTrackDecoder
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Pixels

RATES = st.sampled_from([1, 10, 24, 25, 30, 50, 60])
SPANS = st.fractions(Fraction(1, 1000), Fraction(1), max_denominator=90_000)
SIZE = (96, 64)


class Track:
    """Frames with times and durations, as `VideoTrackDecoder` gives them. A frame is its number."""

    def __init__(self, spans: list[Fraction], last: Fraction, sizes: dict[int, tuple[int, int]] | None = None) -> None:
        times = [sum(spans[:k], Fraction(0)) for k in range(len(spans) + 1)]
        spans = [*spans, last]
        self.timed = [
            ClipFrame(time, span, cast("Any", SimpleNamespace(number=k, size=(sizes or {}).get(k, SIZE))))
            for k, (time, span) in enumerate(zip(times, spans, strict=True))
        ]

    def frames(self) -> Iterator[ClipFrame]:
        yield from self.timed

    def no_frame_error(self) -> Exception:
        return AvatarEmpty("The video has no frame in it.")

    def warnings(self) -> list[tuple[str, str]]:
        return [("video_cut_short", "half of it")]


class Numbers:
    """Pictures that are the number of their frame."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def size(self, frame: Any) -> tuple[int, int]:
        found: tuple[int, int] = frame.size
        return found

    def picture(self, frame: Any, size: tuple[int, int]) -> Pixels:
        self.made.append(frame.number)
        return np.full((1, 1, 3), frame.number, np.uint8)


def clip_of(track: Track, numbers: Numbers, fps: int, asked: list[int] | None = None) -> VideoClip:
    return VideoClip(
        cast(VideoTrackDecoder, track), cast(FrameConverter, numbers), fps, (asked if asked is not None else []).append
    )


def shown(track: Track, fps: int) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in clip_of(track, Numbers(), fps).frames(SIZE)]


def model(track: Track, fps: int) -> list[int]:
    """For each tick before the clip's end, and for the first in any case, the newest frame at or before it."""
    end = track.timed[-1].time + track.timed[-1].duration
    ticks = max(1, math.ceil(end * fps))
    return [max(k for k, timed in enumerate(track.timed) if timed.time <= Fraction(tick, fps)) for tick in range(ticks)]


@settings(max_examples=40)
@given(st.lists(SPANS, max_size=12), SPANS, RATES)
def test_each_tick_shows_the_newest_frame_and_the_clip_keeps_its_length(
    spans: list[Fraction], last: Fraction, fps: int
) -> None:
    track = Track(spans, last)
    assert shown(track, fps) == model(track, fps)


@given(st.integers(1, 40), RATES)
def test_a_clip_at_the_session_s_rate_passes_frame_by_frame(count: int, fps: int) -> None:
    assert shown(Track([Fraction(1, fps)] * (count - 1), Fraction(1, fps)), fps) == list(range(count))


@settings(max_examples=40)
@given(st.lists(SPANS, max_size=12), SPANS, RATES)
def test_no_frame_is_converted_twice_or_without_being_shown_but_the_last(
    spans: list[Fraction], last: Fraction, fps: int
) -> None:
    numbers = Numbers()
    track = Track(spans, last)
    seen = [int(frame[0, 0, 0]) for frame in clip_of(track, numbers, fps).frames(SIZE)]
    assert numbers.made == sorted(set(numbers.made))
    assert set(numbers.made) - set(seen) <= {len(spans)}


def test_a_repeated_frame_is_one_array() -> None:
    frames = list(clip_of(Track([Fraction(1, 5)], Fraction(1, 25)), Numbers(), 25).frames(SIZE))
    assert len({id(frame) for frame in frames}) == 2 and len(frames) == 6


def test_the_frame_that_lies_on_a_tick_is_shown_at_it() -> None:
    """1/25 s exactly, and a hair before and after."""
    hair = Fraction(1, 90_000)
    assert [shown(Track([span], Fraction(1, 25)), 25)[1] for span in (Fraction(1, 25), Fraction(1, 25) + hair)] == [
        1,
        0,
    ]


def test_memory_is_asked_for_before_frames_are_made_and_for_the_size_that_is_wanted() -> None:
    asked: list[int] = []
    frames = clip_of(Track([], Fraction(1)), Numbers(), 25, asked).frames((640, 480))
    assert asked == []
    next(frames)
    assert asked == [640 * 480]


def test_a_clip_without_frames_says_why_when_it_is_opened() -> None:
    track = Track([], Fraction(1))
    track.timed.clear()
    with pytest.raises(AvatarEmpty, match="no frame"):
        clip_of(track, Numbers(), 25)


def test_a_clip_tells_what_is_wrong_with_it() -> None:
    assert clip_of(Track([], Fraction(1)), Numbers(), 25).warnings == [("video_cut_short", "half of it")]


@pytest.mark.parametrize(
    ("size", "passes"), [((192, 128), True), ((97, 64), True), ((99, 64), False), ((64, 96), False)]
)
def test_a_clip_may_change_its_size_and_not_its_shape(size: tuple[int, int], passes: bool) -> None:
    track = Track([Fraction(1, 25)], Fraction(1, 25), {1: size})
    if passes:
        assert shown(track, 25) == [0, 1]
    else:
        with pytest.raises(AvatarUndecodable, match=f"96×64 to {size[0]}×{size[1]}") as caught:
            shown(track, 25)
        assert caught.value.value == f"{size[0]}x{size[1]}"


def animated(durations: list[int]) -> Animation:
    """An animation of frames of these durations (ms), read from a stand-in for Pillow's picture."""
    return Animation(cast("Any", Reel(durations)), "a.gif", AvatarLimits(video_seconds=30))


class Reel:
    """As much of Pillow's picture as is used: it is at one frame at a time, whose number is its colour."""

    size, width, height, mode = (2, 2), 2, 2, "RGB"

    def __init__(self, durations: list[int]) -> None:
        self._durations, self._at = durations, 0
        self.info: dict[str, int] = {}

    def seek(self, at: int) -> None:
        if at >= len(self._durations):
            raise EOFError
        self._at = at
        self.info = {"duration": self._durations[at]}

    def load(self) -> None:
        """Loaded it is."""

    def convert(self, mode: str) -> Any:
        from PIL import Image

        return Image.new(mode, self.size, (self._at, self._at, self._at))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=10), RATES)
def test_frames_of_an_animation_last_as_browsers_show_them(durations: list[int], fps: int) -> None:
    """Up to 10 ms means a tenth of a second; all others are what they say."""
    lasting = [Fraction(span if span > 10 else 100, 1000) for span in durations]
    seen = [int(frame[0, 0, 0]) for frame in animated(durations).frames(fps, lambda size: size)]
    ends = [sum(lasting[: k + 1], Fraction(0)) for k in range(len(lasting))]
    ticks = math.ceil(ends[-1] * fps)
    assert seen == [next(k for k, end in enumerate(ends) if Fraction(tick, fps) < end) for tick in range(ticks)]


def test_an_animation_without_a_frame_is_empty() -> None:
    with pytest.raises(AvatarEmpty, match=r"'a\.gif' has no frame"):
        list(animated([]).frames(25, lambda size: size))


@pytest.mark.parametrize(("durations", "passes"), [([15_000, 15_000], True), ([15_000, 15_000, 11], False)])
def test_an_animation_lasts_as_long_as_is_allowed_and_no_longer(durations: list[int], passes: bool) -> None:
    frames = animated(durations).frames(1, lambda size: size)
    if passes:
        assert len(list(frames)) == 30
    else:
        with pytest.raises(AvatarTooLarge, match="more than 30 s"):
            list(frames)
