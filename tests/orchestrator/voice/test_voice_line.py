"""One session's voice as the core sees it, against the real score of a worker: what is sent, kept, said again, and reported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from orchestrator.voice import voice_worker as module
from orchestrator.voice.voice_worker import AHEAD_S, VoiceLine, VoicePosition
from orchestrator.voice.worker.playout_scheduler import PlayoutScheduler
from orchestrator.voice.worker.room_audio import ROOM_RATE
from orchestrator.voice.worker_messages import (
    ClearAudio,
    EndSegment,
    Handoff,
    HandoffDone,
    JoinRoom,
    LeaveRoom,
    LineReport,
    Publish,
    SegmentPcm,
    SyncTo,
)
from tests.waiting import NEVER_S, turns


class Clock:
    """`time` of the module: it stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 500.0

    def monotonic(self) -> float:
        return self.now


class Worker:
    """A worker whose lines are real scores: what it hands over is heard at once, and reported in the next report."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.alive = True
        self.score: PlayoutScheduler | None = None
        self.sent: list[BaseModel] = []
        self.said: list[tuple[int, int, int]] = []  # segment, position at 48 kHz, count
        self.left: list[VoiceLine] = []
        self.reports: list[LineReport] = []
        self.tokens = 0
        self.line = VoiceLine("line-1", "ws://x", self._token, self.send, self.reports.append, self.left.append)

    def _token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def send(self, message: BaseModel, payload: bytes = b"") -> bool:
        if not self.alive:
            return False
        self.sent.append(message)
        if isinstance(message, JoinRoom):
            self.score = PlayoutScheduler()
        score = self.score
        assert score is not None, "a line that has not joined got a message"
        if isinstance(message, SegmentPcm):
            assert len(payload) % 2 == 0
            score.append(message.segment, message.rate, message.start, payload)  # raises ValueError for a gap
        elif isinstance(message, EndSegment):
            score.end(message.segment)
        elif isinstance(message, ClearAudio):
            score.clear()
        elif isinstance(message, LeaveRoom):
            self.score = None
        elif isinstance(message, Publish):
            self.score = PlayoutScheduler()
        return True

    def plays(self, blocks: int) -> None:
        for _ in range(blocks):
            block = self.score.next(0.0, dry=False) if self.score is not None else None
            if block is None:
                return
            self.said += [(s.segment, s.position, s.count) for s in block.spans if s.position is not None]

    def report_state(self, state: str = "live") -> None:
        score = self.score
        assert score is not None
        at_s = score.position / ROOM_RATE
        where = {"segment": score.segment, "heard_s": at_s, "handed_s": at_s, "next_segment": score.segment}
        self.line.take(LineReport(line="line-1", state=state, at=self.clock.now, next_s=at_s, **where))

    def dies(self) -> None:
        self.alive, self.score = False, None
        self.line.worker_lost()

    def returns(self) -> None:
        self.alive = True
        self.line.worker_ready()

    def of(self, kind: type[BaseModel]) -> list[BaseModel]:
        return [message for message in self.sent if isinstance(message, kind)]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker()
    monkeypatch.setattr(module, "time", made.clock)
    yield made


ACTS = st.lists(
    st.tuples(st.sampled_from(["say", "say", "end", "play", "play", "report", "die", "return"]), st.integers(1, 40)),
    max_size=50,
)


@settings(max_examples=60)
@given(st.sampled_from([16_000, 24_000, ROOM_RATE]), ACTS)
def test_every_sample_is_said_in_order_and_again_only_what_a_lost_worker_had_not_reported(
    rate: int, acts: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        worker = Worker()
        patched.setattr(module, "time", worker.clock)
        line, given_, ended, lost = worker.line, {1: 0}, 0, False
        line.join()
        for act, much in acts:
            number = len(given_)
            if act == "say":
                samples = much * rate // 100
                line.play(number, rate, given_[number], bytes(2 * samples))
                given_[number] += samples
            elif act == "end" and given_[number]:
                line.end(number)
                given_[number + 1] = 0
                ended += 1
            elif act == "play":
                worker.plays(much)
            elif act == "report" and worker.alive:
                worker.report_state()
            elif act == "die" and worker.alive:
                worker.dies()
                lost = True
            elif act == "return" and not worker.alive:
                worker.returns()
            heard = line.position()
            outstanding = sum(count / rate for n, count in given_.items() if n > heard.segment)
            if heard.segment in given_:
                outstanding += max(0.0, given_[heard.segment] / rate - heard.heard_s)
            assert line.outstanding_s == pytest.approx(outstanding, abs=0.001)
            if worker.score is not None:
                assert worker.score.buffer_s <= AHEAD_S + 0.001
        if not worker.alive:
            worker.returns()
        line.end(len(given_), rate)
        for _ in range(400):
            worker.plays(1)
            worker.report_state()
        reached: dict[int, int] = {}
        for segment, position, count in worker.said:
            at = reached.get(segment, 0)
            assert position <= at + 3 if lost else position == at, "a gap, or something twice"
            reached[segment] = max(at, position + count)
        for number, count in given_.items():
            assert reached.get(number, 0) == pytest.approx(-(-count * ROOM_RATE // rate), abs=3)
        assert line.outstanding_s == pytest.approx(0.0, abs=0.001)


def test_sound_is_sent_two_seconds_ahead_and_the_rest_as_it_is_heard(worker: Worker) -> None:
    worker.line.join()
    worker.line.play(1, 16_000, 0, bytes(2 * 16_000 * 10))
    assert [(m.start, m.rate) for m in worker.of(SegmentPcm)] == [(0, 16_000)]
    assert worker.score is not None and worker.score.buffer_s == pytest.approx(2.0, abs=0.01)
    worker.plays(5)
    worker.report_state()
    assert [m.start for m in worker.of(SegmentPcm)] == [0, 32_000]
    assert worker.line.outstanding_s == pytest.approx(9.5, abs=0.01)
    assert worker.line.view()["buffer_s"] == pytest.approx(7.5, abs=0.01)


def test_what_was_heard_is_known_between_reports_and_never_beyond_what_was_handed_over(worker: Worker) -> None:
    line = worker.line
    assert line.position() == VoicePosition(0, 0.0) and not line.live
    report = LineReport(line="line-1", state="live", at=500.0, segment=3, heard_s=1.0, handed_s=1.25, next_segment=3)
    line.take(report)
    for now, heard_s in ((500.0, 1.0), (500.1, 1.1), (500.5, 1.25), (499.0, 1.0)):
        worker.clock.now = now
        assert line.position() == VoicePosition(3, pytest.approx(heard_s))
    assert line.live and worker.reports == [report]
    worker.clock.now = 500.2
    line.worker_lost()
    worker.clock.now = 600.0
    assert line.position() == VoicePosition(3, pytest.approx(1.2)) and not line.live
    assert line.view()["state"] == "waiting" and line.view()["heard_s"] == 1.2


def test_a_gap_is_refused_with_its_place_and_what_comes_twice_is_taken_once(worker: Worker) -> None:
    worker.line.join()
    worker.line.play(1, 16_000, 1000, bytes(200))
    worker.line.play(1, 16_000, 1050, bytes(200))
    with pytest.raises(ValueError, match="segment 1: samples 1150 to 1151 are missing"):
        worker.line.play(1, 16_000, 1151, bytes(2))
    assert [(m.start) for m in worker.of(SegmentPcm)] == [1000, 1100]


def test_a_line_off_the_air_sends_nothing_and_forgets_what_it_was_to_say(worker: Worker) -> None:
    line = worker.line
    line.air(True)
    line.play(1, 16_000, 0, bytes(320))
    assert worker.sent == []  # it has not joined
    line.join(on_air=False)
    line.join()
    assert [type(m) for m in worker.sent] == [JoinRoom] and worker.tokens == 1
    line.air(True)
    assert [type(m) for m in worker.sent] == [JoinRoom, Publish, SegmentPcm]
    line.air(True)
    line.air(False)
    assert [m.on for m in worker.of(Publish)] == [True, False]
    assert line.outstanding_s == 0.0 and line.position() == VoicePosition()
    line.leave()
    line.leave()
    assert len(worker.of(LeaveRoom)) == 1 and worker.left == [line, line]


def test_a_new_worker_gets_what_the_old_one_knew_with_a_token_of_its_own(worker: Worker) -> None:
    line = worker.line
    line.join()
    line.follow(1, 0.5, 501.0)
    line.play(1, 16_000, 0, bytes(32_000))
    line.end(1)
    worker.dies()
    line.play(2, 16_000, 0, bytes(320))
    before = len(worker.sent)
    worker.returns()
    kinds = [type(message) for message in worker.sent[before:]]
    assert kinds == [JoinRoom, SyncTo, SegmentPcm, EndSegment, SegmentPcm]
    assert [m.token for m in worker.of(JoinRoom)] == ["token-1", "token-2"]
    assert worker.of(SyncTo)[-1] == SyncTo(line="line-1", segment=1, heard_s=0.5, at=501.0)


async def test_waiting_for_the_track_and_for_the_first_word_ends_in_time_or_with_no(worker: Worker) -> None:
    line = worker.line
    line.join()
    assert await line.wait_live(0.0) is False and await line.wait_spoken(0.0) is False
    waiting = asyncio.create_task(line.wait_live(NEVER_S))
    await turns()
    line.take(LineReport(line="line-1", state="live", at=500.0))
    assert await waiting is True and await line.wait_spoken(0.0) is False
    line.take(LineReport(line="line-1", state="reconnecting", at=500.0, segment=1, heard_s=0.1))
    assert await line.wait_live(0.0) is False and await line.wait_spoken(NEVER_S) is True


async def test_cuts_have_their_own_answers_and_one_that_is_not_answered_is_none(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = worker.line
    line.join()
    asked = [asyncio.create_task(line.cut(0.7, 0.4)) for _ in range(2)]
    await turns()
    calls = [m.call for m in worker.of(Handoff)]
    assert calls == [1, 2]
    made = [HandoffDone(line="line-1", call=n, segment=n, heard_s=1.0, at=1.0, whole=False) for n in (2, 1, 9, 2)]
    for answer in made:  # in another order, one for nobody, one twice
        line.take(answer)
    assert await asyncio.gather(*asked) == [made[1], made[0]]
    monkeypatch.setattr(module, "_CUT_ANSWER_S", 0.0)
    assert await line.cut(0.7, 0.4) is None
    worker.dies()
    assert await line.cut(0.7, 0.4) is None
    cancelled = asyncio.create_task(line.cut(0.7, 0.4))
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert line._calls == {}
