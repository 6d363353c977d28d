"""What must hold of the clock, the pacing and the kept sound whatever comes, in whatever order: each beside a plain model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musetalk_agent.media.playout import VOICE_LEAD_S, PlayoutClock, VoiceTiming, VoiceTimingQueue
from musetalk_agent.media.scheduler import (
    FIRST_S,
    LATE_FRAMES,
    LEAST_S,
    MOST_S,
    PAUSE_S,
    REPEAT_FRAMES,
    STEP_S,
    WINDOW_S,
    AdaptiveDelay,
    FrameAction,
    Outcome,
    RecentFrames,
    Scheduler,
)
from musetalk_agent.media.segment import WORDS_KEPT, SampleBuffer, Script, Word

RATE = 48_000
MS = RATE // 1000


@dataclass
class Now:
    """A clock that the test sets."""

    seconds: float = 100.0

    def now(self) -> float:
        return self.seconds


class Sink:
    """Plays what it is handed sample by sample, without gaps while it has some: what the clock has to know."""

    def __init__(self, audio_delay_s: float) -> None:
        self.audio_delay_s = audio_delay_s
        self.left: list[tuple[float, int, int]] = []  # (time, first, last) of runs that leave without a gap
        self.enqueued = 0

    def hand(self, samples: int, now: float) -> None:
        if self.left and self._end(self.left[-1]) > now:
            at, first, last = self.left[-1]
            self.left[-1] = (at, first, last + samples)
        else:
            self.left.append((now, self.enqueued, self.enqueued + samples))
        self.enqueued += samples

    @staticmethod
    def _end(run: tuple[float, int, int]) -> float:
        return run[0] + (run[2] - run[1]) / RATE

    def heard(self, now: float) -> float:
        at = now - self.audio_delay_s
        return max([min(last, first + (at - begun) * RATE) for begun, first, last in self.left if at >= begun] or [0])


STEPS = st.lists(
    st.tuples(st.sampled_from(["hand", "hand", "wait", "wait", "rewind", "clear"]), st.integers(1, 400)), max_size=60
)


@given(STEPS, st.sampled_from([0.0, 0.035, 0.15]))
def test_the_playout_clock_counts_only_forward_and_never_more_than_was_handed_over(
    steps: list[tuple[str, int]], audio_delay_s: float
) -> None:
    clock = Now()
    playout = PlayoutClock(clock, RATE, grain_s=0.0, audio_delay_s=audio_delay_s)
    before, settled = 0, 0
    for act, much in steps:
        if act == "hand":
            playout.enqueue(much * MS)
        elif act == "wait":
            clock.seconds += much / 1000
        elif act == "rewind":
            asked = playout.enqueued - much * MS
            before = settled = playout.rewind(asked)
            assert settled == playout.enqueued == playout.position() and playout.empty
        else:
            handed = playout.enqueued
            dropped = playout.clear()
            assert 0 <= dropped <= handed and playout.enqueued == handed - dropped
            before = settled = min(before, playout.enqueued)
        assert settled <= playout.position() <= playout.enqueued
        assert playout.position() >= before
        assert playout.queued_s() >= 0 and (playout.queued_s() == 0) == playout.empty
        before = playout.position()
    clock.seconds += 60
    assert playout.position() == playout.enqueued and playout.empty


PAUSES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 90)), min_size=1, max_size=40)


@given(PAUSES, st.sampled_from([0.0, 0.035, 0.2]))
@example([(5, 10), (5, 10), (5, 10), (5, 10)], 0.035)
def test_the_playout_clock_knows_what_a_sink_has_played_to_the_sample(
    blocks: list[tuple[int, int]], audio_delay_s: float
) -> None:
    """Blocks of some milliseconds, each after a pause of some: the sink runs dry now and then, for less than the path too."""
    clock, sink = Now(), Sink(audio_delay_s)
    playout = PlayoutClock(clock, RATE, grain_s=0.0, audio_delay_s=audio_delay_s)
    for block, pause in blocks:
        playout.enqueue(block * MS)
        sink.hand(block * MS, clock.seconds)
        for _ in range(2):
            clock.seconds += pause / 2000
            assert playout.position() == pytest.approx(sink.heard(clock.seconds), abs=2)


@given(st.integers(0, RATE), st.lists(st.integers(1, 4800), min_size=1, max_size=20))
def test_samples_are_due_in_their_order_and_at_their_distance(waited: int, blocks: list[int]) -> None:
    clock = Now(100 + waited / RATE)
    playout = PlayoutClock(clock, RATE, grain_s=0.0, audio_delay_s=0.035)
    for block in blocks:
        playout.enqueue(block)
    first = playout.time_of(0)
    for position in (0, 1, blocks[0], sum(blocks)):
        assert playout.time_of(position) - first == pytest.approx(position / RATE, abs=1e-9)
        assert playout.time_of(position) - playout.leaves_at(position) == pytest.approx(0.035)


@given(
    st.sampled_from([10, 25, 30, 60]),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(-3, 4), st.floats(0, 4)), max_size=80),
)
def test_a_picture_is_shown_in_time_or_dropped_and_only_a_few_beats_are_bridged(
    fps: int, looks: list[tuple[bool, bool, float, float]]
) -> None:
    """Each look: whether a picture waits, whether one is missing, when it is due (periods from now), how long the next takes."""
    now = 50.0
    paced = Scheduler(fps, now)
    period, held, dropped = 1 / fps, 0, 0
    for waiting, missing, due_in, later in looks:
        due = now + due_in * period
        decision = paced.decide(now, waiting=waiting, due=due, missing=missing)
        match decision.act:
            case FrameAction.SHOW:
                assert waiting and decision.at == due and now - due <= LATE_FRAMES * period + 1e-9
                held = 0
            case FrameAction.DROP:
                assert waiting and now - due > LATE_FRAMES * period - 1e-9
                dropped += 1
            case FrameAction.HOLD:
                assert missing
                held += 1
                assert held <= REPEAT_FRAMES
            case FrameAction.IDLE:
                held = held if missing else 0
                assert not missing or held == REPEAT_FRAMES
        if decision.act in (FrameAction.HOLD, FrameAction.IDLE):
            assert decision.at >= now - 2.5 * period - 1e-9  # a beat missed by more is given up
            assert not waiting or due > decision.at + period / 2 - 1e-9
        paced.done(decision)
        now = max(now, decision.at) + later * period
    assert paced.dropped == dropped


@given(st.sampled_from([25, 30, 60]), st.integers(1, 60), st.floats(0, 0.3), st.integers(0, 40))
def test_a_machine_that_is_in_time_shows_every_spoken_picture_at_its_moment(
    fps: int, count: int, lead_s: float, before: int
) -> None:
    now = 7.0
    paced = Scheduler(fps, now)
    period = 1 / fps
    first = now + before * period + lead_s
    shown: list[float] = []
    idle: list[float] = []
    while len(shown) < count:
        decision = paced.decide(now, waiting=True, due=first + len(shown) * period, missing=False)
        assert decision.act in (FrameAction.SHOW, FrameAction.IDLE)
        (shown if decision.act is FrameAction.SHOW else idle).append(decision.at)
        paced.done(decision)
        now = max(now, decision.at)
    assert shown == [first + k * period for k in range(count)]
    assert all(at < first for at in idle) and paced.stalls == paced.dropped == paced.held == 0
    moments = [*idle, *shown]
    assert all(period / 2 - 1e-9 <= b - a <= 1.5 * period + 1e-9 for a, b in itertools.pairwise(moments))


@given(
    st.floats(0, 0.2),
    st.lists(
        st.tuples(st.sampled_from(["dry", "resumed", "over"]), st.integers(0, 400), st.integers(0, 20)), max_size=80
    ),
)
def test_a_head_start_stays_within_its_bounds_and_shrinks_only_after_a_segment_without_lateness(
    lookahead_s: float, happened: list[tuple[str, int, int]]
) -> None:
    head, now = AdaptiveDelay(lookahead_s), 0.0
    least = max(LEAST_S, FIRST_S - lookahead_s)
    assert head.seconds == least
    late, dry_at = False, None
    for what, ms, dropped in happened:
        now += ms / 1000
        before = head.seconds
        if what == "dry":
            head.on_underrun(now)
            dry_at = now
            assert head.seconds == before
        elif what == "resumed":
            was_late = head.on_resume(now)
            assert was_late == (dry_at is not None and now - dry_at <= PAUSE_S)
            late, dry_at = late or was_late, None
            assert head.seconds == pytest.approx(min(MOST_S, before + STEP_S) if was_late else before)
        else:
            frames = 10 * ms
            widened = dropped > 1 + frames // 50
            head.on_segment_end(frames, dropped)
            expected = min(MOST_S, before + STEP_S) if widened else before
            expected = expected if late or widened else max(least, before - STEP_S / 2)
            assert head.seconds == pytest.approx(expected)
            late, dry_at = False, None
        assert least - 1e-12 <= head.seconds <= MOST_S


@given(st.sampled_from([1, 25, 60]), st.lists(st.tuples(st.sampled_from(Outcome), st.integers(0, 700)), max_size=120))
def test_recent_frames_are_those_of_the_window_and_the_verdict_has_two_thresholds(
    fps: int, frames: list[tuple[Outcome, int]]
) -> None:
    recent, now, noted, degraded = RecentFrames(fps), 0.0, list[tuple[float, Outcome]](), False
    for outcome, ms in frames:
        now += ms / 1000
        recent.note(now, outcome)
        noted = [*noted, (now, outcome)][-round(2 * WINDOW_S * fps) :]
        window = [found for at, found in noted if at >= now - WINDOW_S]
        enough = len(window) >= max(1, round(0.5 * fps))
        shares = {one: window.count(one) / len(window) if enough else 0.0 for one in Outcome}
        assert {one: recent.share(now, one) for one in Outcome} == pytest.approx(shares)
        bad = shares[Outcome.LATE] + shares[Outcome.FAILED]
        degraded = bad > (0.05 if degraded else 0.1)
        assert recent.degraded(now) == degraded


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "push", "take", "take", "forget", "rest"]), st.integers(0, 60)), max_size=60
    )
)
def test_a_tape_gives_back_what_went_in(acts: list[tuple[str, int]]) -> None:
    """The model: one row of samples, and how far it was taken."""
    tape, samples, taken, forgotten, fresh = SampleBuffer(), list[int](), 0, 0, 0
    for act, much in acts:
        if act == "push":
            tape.push(np.arange(fresh, fresh + much, dtype=np.int16))
            samples += range(fresh, fresh + much)
            fresh += much
        elif act == "take":
            got = tape.take(much)
            assert got.dtype == np.int16 and got.tolist() == samples[taken : taken + much]
            taken += len(got)
        elif act == "forget":
            tape.forget(much)
            assert tape.kept >= min(much, taken - forgotten)
            forgotten = taken - tape.kept
        else:
            back = min(much, tape.kept)
            with pytest.raises(ValueError, match="are kept"):
                tape.rest(tape.kept + 1)
            tape = tape.rest(back)
            samples, taken, forgotten = samples[taken - back :], 0, 0
        assert (len(tape), tape.kept) == (len(samples) - taken, taken - forgotten)
    ahead = min(5, len(tape))
    assert tape.rest(-ahead).take(10_000).tolist() == samples[taken + ahead :]


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 900), st.integers(-40, 40)), max_size=60))
def test_the_publisher_of_the_voice_always_knows_where_it_is(moments: list[tuple[int, bool, int, int]]) -> None:
    """After each call the newest that was sent says within 5 ms, or half a second ago, when each second of the voice leaves."""
    changes: list[None] = []
    due = VoiceTimingQueue(lambda: changes.append(None))
    known: VoiceTiming | None = None
    now = 10.0
    for segment, pauses, ms, off_ms in moments:
        now += ms / 1000
        heard_s = max(0.0, now - 10.0 + off_ms / 1000)
        before = len(changes)
        (due.holds if pauses else due.plays)(segment, heard_s, now + VOICE_LEAD_S)
        sent = due.take()
        assert len(sent) == len(changes) - before <= 1
        known = sent[-1] if sent else known
        assert known is not None and known.segment == segment and known.held == pauses
        if not sent and not pauses:
            assert now + VOICE_LEAD_S - known.at < 0.5
            assert abs((known.at - known.heard_s) - (now + VOICE_LEAD_S - heard_s)) <= 0.005 + 1e-9
    due.clear()
    due.plays(1, 0.0, float("inf"))  # while no way out carries, no one knows
    assert due.take() == []


@given(
    st.lists(st.lists(st.integers(0, 300), max_size=6), min_size=1, max_size=8),
    st.lists(st.integers(0, 500), max_size=40),
)
def test_each_word_is_shown_once_in_its_order_when_it_is_heard(parts: list[list[int]], looks: list[int]) -> None:
    words, at = list[Word](), 0.0
    script, shown, second = Script("1"), "", 0.0
    for part in parts:
        fresh = []
        for gap in part:
            at += gap / 1000
            fresh.append(Word(f"w{len(words) + len(fresh)} ", at))
        script.add(fresh)
        words += fresh
        if looks:
            second += looks.pop() / 1000
        caption = script.hear(second)
        shown += caption.text if caption else ""
        assert shown == "".join(word.text for word in words if word.at_s <= second)
    rest = script.rest("1+", second)
    caption = rest.hear(1e9)
    assert (caption.text if caption else "") == "".join(word.text for word in words if word.at_s >= second)
    assert (script.end() is not None) == bool(shown) and script.end() is None


def test_words_past_the_bound_push_out_those_that_were_shown_and_then_are_left_out() -> None:
    script = Script("1")
    script.add([Word("a ", 0.0)] * WORDS_KEPT)
    assert script.hear(1.0) is not None
    script.add([Word("b ", 2.0)] * (WORDS_KEPT + 5))
    caption = script.hear(3.0)
    assert caption is not None and caption.text == "b " * WORDS_KEPT
