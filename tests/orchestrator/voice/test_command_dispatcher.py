"""The worker's desk: which line an order goes to, what is an order, and that a core that hangs is sent no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from orchestrator import worker_pipe
from orchestrator.voice.worker import __main__ as worker
from orchestrator.voice.worker.__main__ import CommandDispatcher
from orchestrator.voice.worker.playout_scheduler import PlayoutScheduler
from orchestrator.voice.worker.room_audio import AUDIO_PATH_S, QUEUE_MS, ROOM_RATE, AudioSpan, Playout
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
    WorkerReady,
)
from orchestrator.voice.worker_messages import worker_commands as orders
from orchestrator.voice.worker_messages import worker_reports as tellings
from tests.waiting import NEVER_S, turns


class Pipe:
    """The pipe to the core: what was written, and how much of it lies unread."""

    def __init__(self) -> None:
        self.unread = 0
        self.written: list[dict[str, Any]] = []

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes) -> None:
        head, payload = worker_pipe.lengths(data[: worker_pipe.LENGTHS.size])
        assert len(data) == worker_pipe.LENGTHS.size + head + payload
        self.written.append(worker_pipe.decode_header(data[worker_pipe.LENGTHS.size :][:head]))


class FakeLine:
    """`Line` without a room: it runs until it is left."""

    def __init__(self, join: JoinRoom, report: Any) -> None:
        self.join, self.report = join, report
        self.score = PlayoutScheduler()
        self.happened: list[str] = []
        self._left = asyncio.Event()
        self.hangs = False

    async def run(self) -> None:
        await self._left.wait()
        if self.hangs:
            await asyncio.Event().wait()

    def leave(self) -> None:
        self.happened.append("leave")
        self._left.set()

    def clear(self) -> None:
        self.happened.append("clear")

    def air(self, on: bool) -> None:
        self.happened.append(f"air {on}")

    def changed(self) -> None:
        self.happened.append("changed")

    def cut(self, asked: Handoff) -> HandoffDone:
        return HandoffDone(line=asked.line, call=asked.call, segment=0, heard_s=0.0, at=0.0, whole=False)


def said(message: BaseModel) -> bytes:
    return message.model_dump_json().encode()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> CommandDispatcher:
    monkeypatch.setattr(worker, "RoomPublisher", FakeLine)
    monkeypatch.setattr(worker, "_GOODBYE_S", 0.05)
    return CommandDispatcher(Pipe())


def line_of(desk: CommandDispatcher, name: str) -> FakeLine:
    return desk._lines[name]


async def test_orders_go_to_their_line_and_to_no_other(desk: CommandDispatcher) -> None:
    for name in ("a", "b"):
        desk.take(said(JoinRoom(line=name, url="ws://x", token="t", on_air=True)), b"")
    desk.take(said(SegmentPcm(line="a", segment=1, rate=48_000, start=0)), bytes(9600))
    desk.take(said(EndSegment(line="a", segment=1)), b"")
    assert line_of(desk, "a").score.buffer_s == pytest.approx(0.1) and line_of(desk, "b").score.buffer_s == 0
    desk.take(said(Publish(line="b", on=False)), b"")
    desk.take(said(ClearAudio(line="b")), b"")
    assert line_of(desk, "b").happened == ["air False", "changed", "clear", "changed"]
    desk.take(said(Handoff(line="b", call=7, after_s=0.1, within_s=0.1)), b"")
    pipe: Pipe = desk._out
    assert [(message["op"], message["line"], message["call"]) for message in pipe.written] == [("cut_made", "b", 7)]
    desk.take(said(LeaveRoom(line="b")), b"")
    await turns()
    assert list(desk._lines) == ["a"]
    desk.take(said(SegmentPcm(line="b", segment=1, rate=48_000, start=0)), bytes(2))  # it has left: nothing to be done
    await desk.aclose()
    await turns()
    assert desk._lines == {} and not desk._tasks


async def test_a_line_that_joins_again_under_its_name_outlives_the_end_of_the_one_before(
    desk: CommandDispatcher,
) -> None:
    desk.take(said(JoinRoom(line="a", url="ws://x", token="t1", on_air=True)), b"")
    first = line_of(desk, "a")
    desk.take(said(JoinRoom(line="a", url="ws://x", token="t2", on_air=True)), b"")
    first.leave()
    await turns()
    assert line_of(desk, "a").join.token == "t2"
    await desk.aclose()


async def test_a_room_that_hangs_does_not_hold_the_end_of_the_worker_up(desk: CommandDispatcher) -> None:
    desk.take(said(JoinRoom(line="a", url="ws://x", token="t", on_air=True)), b"")
    line_of(desk, "a").hangs = True
    async with asyncio.timeout(NEVER_S):
        await desk.aclose()
    (task,) = desk._tasks
    task.cancel()
    await turns()


async def test_a_core_that_reads_nothing_is_sent_no_more(desk: CommandDispatcher) -> None:
    pipe: Pipe = desk._out
    beat = asyncio.create_task(desk.beat())
    await turns()
    assert pipe.written == [{"op": "hello"}]
    pipe.unread = 1 << 20
    desk.report(LineReport(line="a", state="live", at=1.0))
    assert len(pipe.written) == 1
    beat.cancel()
    await asyncio.gather(beat, return_exceptions=True)


@pytest.mark.parametrize("header", [b"", b"{}", b'{"op":"jump","line":"a"}', b'{"op":"sound","line":"a"}', b"[]"])
async def test_what_is_no_order_is_refused(desk: CommandDispatcher, header: bytes) -> None:
    with pytest.raises(ValidationError):
        desk.take(header, b"")


async def test_sound_with_a_gap_is_refused(desk: CommandDispatcher) -> None:
    desk.take(said(JoinRoom(line="a", url="ws://x", token="t", on_air=True)), b"")
    desk.take(said(SegmentPcm(line="a", segment=1, rate=48_000, start=0)), bytes(200))
    with pytest.raises(ValueError, match="100 to 101 are missing"):
        desk.take(said(SegmentPcm(line="a", segment=1, rate=48_000, start=101)), bytes(2))
    await desk.aclose()


ANY = st.one_of(
    st.builds(SegmentPcm, line=st.text(max_size=9), segment=st.integers(), rate=st.integers(), start=st.integers()),
    st.builds(SyncTo, line=st.just("l"), segment=st.integers(), heard_s=st.floats(0, 1e6), at=st.floats(0, 1e9)),
    st.builds(Handoff, line=st.just("l"), call=st.integers(), after_s=st.floats(0, 9), within_s=st.floats(0, 9)),
    st.builds(
        LineReport, line=st.just("l"), state=st.text(max_size=9), at=st.floats(0, 1e9), finished=st.lists(st.integers())
    ),
    st.just(WorkerReady()),
)


@settings(max_examples=40)
@given(ANY)
def test_messages_come_back_as_they_were(message: BaseModel) -> None:
    read = (tellings if isinstance(message, LineReport | WorkerReady) else orders).validate_json(said(message))
    assert read == message
    assert "token" not in repr(JoinRoom(line="l", url="u", token="secret", on_air=True))


BLOCKS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=30)


@settings(max_examples=60)
@given(BLOCKS)
@example([(1, 0), (1, 5), (1, 1)])
def test_the_playout_knows_which_sample_of_which_segment_is_heard(blocks: list[tuple[int, int]]) -> None:
    """Blocks of some 10 ms, each after a pause of some: segment after segment of a second, with 10 ms of silence before each."""
    now, handed, leaves = 100.0, 0, list[tuple[float, int]]()
    playout, free_at = Playout(now), 100.0
    for number, (steps, pause) in enumerate(blocks, 1):
        count = steps * 480
        free_at = max(free_at, now + 0.005) if free_at > now else now + 0.005
        assert playout.next_at(now) == pytest.approx(free_at)
        playout.hand(now, [AudioSpan(0, 480, number, None), AudioSpan(0, count, number, 100)])
        leaves.append((free_at + 0.01, number))
        free_at += (480 + count) / ROOM_RATE
        handed += 480 + count
        assert playout.handed == handed and playout.queued_s(now) == pytest.approx(free_at - now, abs=0.0051)
        now += pause / 100
        playout.advance(now)
        begun = [(at, n) for at, n in leaves if now - AUDIO_PATH_S > at + 1e-4]
        if begun:
            at, segment = begun[-1]
            length = blocks[segment - 1][0] * 480
            expected = 100 + min(length, int((now - AUDIO_PATH_S - at) * ROOM_RATE))
            assert playout.segment == segment and playout.heard == pytest.approx(expected, abs=2)
        assert playout.heard <= playout.goes_on_to()
    playout.advance(now + 60)
    assert (playout.passed, playout.segment) == (handed, len(blocks)) and playout.dry(now + 60)


def test_a_cleared_queue_is_not_heard_and_a_full_one_corrects_the_clock() -> None:
    playout = Playout(100.0)
    playout.hand(100.0, [AudioSpan(0, 48_000, 1, 0)])
    playout.clear(100.505)
    assert playout.handed == pytest.approx(24_000, abs=1) and playout.dry(100.506)
    playout.advance(101.0)
    assert (playout.segment, playout.heard) == (1, pytest.approx((0.5 - AUDIO_PATH_S) * ROOM_RATE, abs=1))
    playout = Playout(100.0)
    playout.hand(100.0, [AudioSpan(0, 48_000, 1, 0)])
    playout.full(100.5)  # a hiccup: 100 ms wait, so that 900 were played
    assert playout.queued_s(100.5) == pytest.approx(QUEUE_MS / 1000)
