"""A segment in any order of pushes, reads, rests and cuts: positions, what is read, and what is left to be played again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.media.segment import GRAIN, ROOM_RATE, Segment
from musetalk_agent.media_types import FEATURE_RATE, Cue, frame_start
from tests.musetalk_agent.media.test_segment import converted, noise

RATES = st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000])
READS = st.lists(st.tuples(st.sampled_from(["push", "push", "block", "features"]), st.integers(1, 900)), max_size=40)


@given(RATES, st.sampled_from([25, 30]), READS)
@settings(max_examples=40)
def test_both_readers_get_all_of_it_whenever_they_read(rate: int, fps: int, acts: list[tuple[str, int]]) -> None:
    pcm = noise(20, rate)
    segment = Segment(1, 0, rate, fps)
    room, features, at = [np.zeros(0, np.int16)], [np.zeros(0, np.int16)], 0
    for number, (act, much) in enumerate(acts):
        if act == "push":
            samples = pcm[at : at + much * rate // 1000]
            segment.push(samples, number / 10)
            at += len(samples)
        elif act == "block":
            block = segment.take_block()
            assert block is None or (len(block) and len(block) % GRAIN == 0)
            room += [block] if block is not None else []
        else:
            features.append(segment.take_features(much * FEATURE_RATE // 1000))
        assert segment.enqueued == sum(map(len, room)) and segment.duration_s == at / rate
        assert not segment.ended and not segment.enqueued_all
    segment.end(99.0)
    while not segment.enqueued_all or len(segment.for_features):
        features.append(segment.take_features(FEATURE_RATE))
        block = segment.take_block()
        room += [block] if block is not None else []
    expected = converted(pcm[:at], rate, ROOM_RATE)
    heard = np.concatenate(room)
    np.testing.assert_array_equal(np.concatenate(features), converted(pcm[:at], rate, FEATURE_RATE))
    np.testing.assert_array_equal(heard[: len(expected)], expected)
    assert not heard[len(expected) :].any() and len(heard) == segment.room_samples and len(heard) % GRAIN == 0
    assert (
        len(heard) - len(expected) <= frame_start(1, fps, ROOM_RATE) + GRAIN
    )  # at most a frame and a grain of silence
    times = list(segment.arrivals.times)
    assert len(times) == segment.frames and times == sorted(times)


def cut_apart(cuts: list[tuple[int, int]]) -> tuple[Segment, list[tuple[int, int]]]:
    """A segment that began at playout position 48,000, with these cuts: (what is heard before it, how much is left out)."""
    segment = Segment(1, 0, 16_000, 25)
    segment.origin, at = 48_000, 0
    for heard, left_out in cuts:
        at += heard
        segment._cuts.append((at, left_out))
        at += left_out
    segment.enqueued = at + 1000
    return segment, segment._cuts


CUTS = st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 50_000)), max_size=6)


@given(CUTS, st.integers(0, 400_000))
def test_positions_and_samples_are_each_other_s_inverse_but_for_what_was_left_out(
    cuts: list[tuple[int, int]], sample: int
) -> None:
    segment, made = cut_apart(cuts)
    position = segment.position_of(sample)
    left_out = next(((at, length) for at, length in made if at < sample < at + length), None)
    if left_out is None:
        assert segment.position_of(segment._sample(position)) == position
    else:
        assert position == segment.position_of(left_out[0])  # all of it lies at the cut
    assert segment.position_of(sample + 1) - position in (0, 1)


@given(CUTS, st.lists(st.integers(0, 500_000), min_size=2, max_size=10))
def test_what_was_heard_only_grows_and_what_was_left_out_counts_as_heard(
    cuts: list[tuple[int, int]], positions: list[int]
) -> None:
    segment, made = cut_apart(cuts)
    segment.received = segment.enqueued // 3  # at 16 kHz
    seconds = [segment.heard_s(position) for position in sorted(positions)]
    assert seconds == sorted(seconds) and all(0 <= one <= segment.duration_s for one in seconds)
    assert segment.heard_s(segment.end_position) == pytest.approx(segment.duration_s, abs=1 / 16_000)
    assert segment.end_position == 48_000 + segment.enqueued - sum(length for _, length in made)


@given(RATES, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=8), st.floats(0, 5))
def test_cues_lie_where_they_were_and_none_before_the_beginning(
    rate: int, spans: list[tuple[int, int]], heard_before_s: float
) -> None:
    segment = Segment(1, 0, rate, 25, heard_before_s)
    cues = [Cue("a", min(span), max(span)) for span in spans]
    segment.add_cues(cues)
    base = round(heard_before_s * FEATURE_RATE)
    kept = [cue for cue in cues if int(cue.end * FEATURE_RATE / rate) > base]
    assert len(segment.cues) == len(kept)
    for got, cue in zip(segment.cues, kept, strict=True):
        assert 0 <= got.start <= got.end
        assert got.end == pytest.approx(cue.end * FEATURE_RATE / rate - base, abs=1.01)
        assert got.start == pytest.approx(max(0.0, cue.start * FEATURE_RATE / rate - base), abs=1.01)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 60))
def test_rests_are_the_runs_of_frames_in_which_no_one_speaks(speaks: list[bool], at: int) -> None:
    segment = Segment(1, 0, 16_000, 25)
    for speaking in speaks:
        if speaking:
            assert segment.frame_ordered() == segment.frames_ordered - 1
            segment.frame_made()
        else:
            segment.frame_rests()
        assert segment.resting == (not speaking)
    assert segment.frames_ordered == segment.frames_ready == len(speaks)
    rested = {frame for first, end in segment.rests for frame in range(first, len(speaks) if end is None else end)}
    silent = [frame for frame, speaking in enumerate(speaks) if not speaking]
    assert rested >= set(silent[-32:]) and rested <= set(silent)
    assert not segment.rests_at(0)  # it has not begun
    segment.origin = 0
    if at < len(speaks) and at in rested:
        assert segment.rests_at(frame_start(at, 25, ROOM_RATE))
