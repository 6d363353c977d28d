"""Deciders of the ways out, whatever is reported to them in whatever order: each beside a plain model or held to its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media.playout import PlayoutHistory
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.publishers.failover.quality import DOWN_S, STEPS, UP_S, Adaptation, Health, judge_room, judge_stream
from musetalk_agent.publishers.livekit.stats import Liveness, TransportStats
from musetalk_agent.publishers.stream.encoder import AUDIO_S, VIDEO_S, MediaQueue, QueuedAudio, QueuedFrame
from tests.musetalk_agent.publishers.feed import picture

FRAME = picture(90, 16)
BLOCK = np.zeros(ROOM_RATE // 25, np.int16)


@given(st.lists(st.tuples(st.sampled_from(Health), st.floats(0.05, 5)), max_size=150))
def test_quality_takes_one_step_at_a_time_and_only_after_its_time(looks: list[tuple[Health, float]]) -> None:
    now, since, before = 0.0, 0.0, Health.GOOD
    adaptation = Adaptation(now)
    for health, later in looks:
        now += later
        since = since if health is before else now
        step, before = adaptation.step, health
        changed = adaptation.note(health, now)
        moved = adaptation.step - step
        assert 0 <= adaptation.step < len(STEPS) and abs(moved) == int(changed)
        if moved > 0:
            assert health is Health.BAD and now - since >= DOWN_S
        elif moved < 0:
            assert health is Health.GOOD and now - since >= UP_S
        elif health is Health.BAD:
            assert now - since < DOWN_S or adaptation.step == len(STEPS) - 1
        since = now if changed else since
        assert adaptation.quality is STEPS[adaptation.step]


@given(st.lists(st.sampled_from(Health), max_size=80))
def test_quality_is_full_again_once_the_way_is_good_for_long_whatever_was_before(before: list[Health]) -> None:
    adaptation, now = Adaptation(0.0), 0.0
    for health in before:
        now += 1.0
        adaptation.note(health, now)
    for _ in range(len(STEPS) * 64 + 64):  # the longest a step up is put off, for each step
        now += 1.0
        adaptation.note(Health.GOOD, now)
    assert adaptation.step == 0


def test_each_step_needs_less_than_the_one_before() -> None:
    shares = [step.share for step in STEPS]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == len(shares) and shares[0] == 1.0


@given(
    st.integers(0, len(STEPS) - 1),
    st.sampled_from([15, 25, 30]),
    st.booleans(),
    st.floats(0, 4_000_000),
    st.floats(0, 1),
    st.integers(0, 50),
    st.floats(0, 0.2),
)
def test_a_room_is_bad_for_a_reason_and_good_only_where_a_step_up_fits(
    step: int, fps: int, limited: bool, available: float, lost: float, encoded: int, each_s: float
) -> None:
    before = TransportStats(frames_encoded=100, encode_s=1.0)
    after = TransportStats(
        frames_encoded=100 + encoded,
        encode_s=1.0 + encoded * each_s,
        limited=limited,
        available_bitrate=available,
        fraction_lost=lost,
    )
    health = judge_room(before, after, wanted=1_500_000, fps=fps, step=step)
    needed = 1_500_000 * STEPS[step].share
    too_slow = encoded > 0 and (after.encode_s - before.encode_s) / encoded > 0.8 * STEPS[step].fps_divisor / fps
    if health is Health.BAD:
        assert too_slow or lost > 0.15 or (limited and available < needed / 2)
    if health is Health.GOOD:
        assert available >= 0.8 * needed and lost <= 0.08 and not too_slow
        assert step == 0 or available >= 0.8 * 1_500_000 * STEPS[step - 1].share


@given(st.floats(0, 3), st.integers(0, 5), st.floats(0, 1), st.integers(0, 5))
def test_a_stream_with_more_waiting_and_more_dropped_is_never_better(
    queue_s: float, dropped: int, more_s: float, more: int
) -> None:
    order = [Health.GOOD, Health.FAIR, Health.BAD]
    assert order.index(judge_stream(queue_s + more_s, dropped + more)) >= order.index(judge_stream(queue_s, dropped))


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(-4800, 9600)), min_size=1, max_size=200),
    st.lists(st.floats(-2, 40), max_size=20),
)
def test_what_was_heard_when_goes_forward_and_stays_between_the_notes(
    notes: list[tuple[int, int]], moments: list[float]
) -> None:
    heard, now, position = PlayoutHistory(), 0.0, 0
    assert heard.at(0.0) == 0
    for ms, samples in notes:
        now += ms / 1000
        position = max(0, position + samples)
        heard.note(now, position)
    assert heard.at(now) == position == heard.at(now + 100)
    found = [heard.at(moment) for moment in sorted(moments)]
    assert found == sorted(found) and all(0 <= one <= position for one in found)


class Model:
    """Both queues as lists; what `MediaQueue` must do in its own words."""

    def __init__(self) -> None:
        self.sounds: list[QueuedAudio] = []
        self.pictures: list[QueuedFrame] = []
        self.lost = self.dropped = 0
        self.gap = False


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["sound", "sound", "picture", "picture", "take", "take", "back", "clear"]), st.integers(0, 900)
    ),
    max_size=120,
)


@given(ACTS)
def test_a_media_queue_gives_out_in_time_order_bounded_and_with_a_key_after_each_gap(
    acts: list[tuple[str, int]],
) -> None:
    queue, model, now = MediaQueue(), Model(), 50.0
    last: QueuedAudio | None = None
    for act, ms in acts:
        if act == "sound":
            sound = QueuedAudio(now, BLOCK)
            queue.offer_audio(sound)
            model.sounds.append(sound)
            while model.sounds[0].at < now + 0.04 - AUDIO_S:
                model.sounds.pop(0)
                model.lost += 1
        elif act == "picture":
            shown = QueuedFrame(now, FRAME)
            if model.pictures and now - model.pictures[0].at > VIDEO_S:
                model.dropped, model.gap = model.dropped + len(model.pictures), True
                model.pictures.clear()
            queue.offer_video(shown)
            model.pictures.append(shown)
        elif act == "take":
            fresh = [one for one in model.pictures if now - one.at <= VIDEO_S]
            model.gap = model.gap or len(fresh) < len(model.pictures)
            model.dropped += len(model.pictures) - len(fresh)
            model.pictures = fresh
            heads = [*model.sounds[:1], *model.pictures[:1]]
            expected = min(heads, key=lambda one: one.at) if heads else None
            got = queue.take(now)
            if isinstance(expected, QueuedAudio):
                assert got is expected
                last = model.sounds.pop(0)
            elif expected is None:
                assert got is None
            else:
                assert isinstance(got, QueuedFrame) and (got.at, got.key) == (expected.at, model.gap)
                assert now - got.at <= VIDEO_S
                model.pictures.pop(0)
                model.gap = False
        elif act == "back" and last is not None:
            queue.requeue(last)
            model.sounds.insert(0, last)
            last = None
        elif act == "clear":
            since = now - ms / 1000
            queue.clear_audio(since)
            model.sounds = [one for one in model.sounds if one.at < since]
            cut = queue.take_cut()
            assert cut == since and queue.take_cut() is None
            last = None if last is not None and last.at >= since else last
        assert (queue.dropped_frames, queue.dropped_audio) == (model.dropped, model.lost)
        waiting = [*model.sounds, *model.pictures]
        newest = max(
            [*(one.at + 0.04 for one in model.sounds[-1:]), *(one.at for one in model.pictures[-1:])], default=0.0
        )
        assert queue.seconds() == pytest.approx(newest - min(one.at for one in waiting) if waiting else 0.0)
        now += ms / 1000 if act in ("sound", "picture", "take") else 0.0


@given(
    st.lists(
        st.tuples(
            st.floats(0.05, 3.0),
            st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 2))),
            st.floats(-2000, 2000),
        ),
        max_size=60,
    )
)
def test_silence_is_never_negative_never_longer_than_the_connection_and_ends_when_packets_come(
    polls: list[tuple[float, tuple[int, int, int] | None, float]],
) -> None:
    """Each poll: how much later, what was counted meanwhile (packets, pictures, reports) or nothing, a step of the wall clock."""
    begun = now = 500.0
    wall_ms = 1e12
    liveness, packets, frames, reports = Liveness(begun), 0, 0, 0
    for later, counted, step in polls:
        now += later
        wall_ms += 1000 * later + step
        reading = None
        if counted is not None:
            packets, frames, reports = packets + counted[0], frames + counted[1], reports + counted[2]
            reading = TransportStats(
                packets_received=packets, received_at_ms=wall_ms, frames_sent=frames, reports=reports
            )
        liveness.note(reading, now, wall_ms)
        assert 0 <= liveness.silent_s <= now - begun + 1e-9
        assert begun <= liveness.heard_at <= now
        if counted is not None and counted[0] and counted[2]:
            assert liveness.silent_s <= later + 1e-9


def test_a_picture_larger_than_the_queue_s_age_is_not_lost_when_it_is_the_only_one() -> None:
    queue = MediaQueue()
    queue.offer_video(QueuedFrame(1.0, VideoFrame(FRAME.i420, 16, 16, 0)))
    got = queue.take(1.0 + VIDEO_S)
    assert isinstance(got, QueuedFrame) and not got.key
    queue.offer_video(QueuedFrame(1.0, FRAME))
    assert queue.take(1.01 + VIDEO_S) is None and queue.dropped_frames == 1
    queue.offer_video(QueuedFrame(2.0, FRAME))
    again = queue.take(2.0)
    assert isinstance(again, QueuedFrame) and again.key
    assert queue.seconds() == pytest.approx(0.0)
