"""The audio path of one session as its sender sees it, on virtual time: limits, acknowledgements, clears, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from musetalk_agent.protocol.messages import Cleared, PlaybackFinished, PlaybackStarted
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.ingest import AudioFormat, AudioLimits, PcmDecoder
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.audio.segments import EXPLICIT_END_S, IDLE_END_S, OPEN_SEGMENTS
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.event_outbox import ClientQueue
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.store.session_store import Progress
from tests.virtual_loop import virtually

RATE = 16_000


@asynccontextmanager
async def running(on_progress: Callable[[], None] = lambda: None, **limits: Any) -> AsyncIterator[SpeechPipeline]:
    metrics = Metrics()
    live = SpeechPipeline("ses_1", AudioLimits(**limits), metrics, EventBus(metrics), on_progress)
    task = asyncio.create_task(live.run())
    try:
        yield live
    finally:
        live.end(None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Voice:
    """Somebody who takes every item at once and says what a test wants."""

    def __init__(self, live: SpeechPipeline) -> None:
        self.live, self.items = live, list[LinkMessage]()
        live.attach_renderer(self)
        self.wake()

    def wake(self) -> None:
        while (item := self.live.next_item(0.0)) is not None:
            self.items.append(item)

    def outstanding_s(self, now: float) -> float:
        return 0.0


def pcm(seconds: float) -> bytes:
    return np.ones(round(seconds * RATE), "<i2").tobytes()


def decoder() -> PcmDecoder:
    return PcmDecoder(AudioFormat.S16LE)


async def read(connection: ClientQueue) -> list[Any]:
    """What waits for the sender."""
    return [await connection.take() for _ in range(connection.waiting)]


def problem_of(error: pytest.ExceptionInfo[ProblemError]) -> tuple[ErrorCode, object]:
    return error.value.code, error.value.limit


@virtually
async def test_the_hello_tells_where_the_session_stands_and_what_it_takes() -> None:
    async with running(backlog_s=30.0) as live:
        (hello,) = await read(live.connect(RATE))
        assert (hello.session_id, hello.received_samples, hello.sample_rate) == ("ses_1", 0, RATE)
        assert (hello.limits.backlog_s, hello.limits.segments) == (30.0, OPEN_SEGMENTS)
        live.ingest.push(pcm(0.5), decoder(), RATE)
        (again, *_) = await read(live.connect(RATE))
        assert again.received_samples == 8000


@virtually
async def test_a_session_has_one_rate_from_its_first_sample_on() -> None:
    async with running() as live:
        live.connect(48_000)
        live.connect(24_000)
        assert live.ingest.sample_rate is None and live.effective_rate == 16_000
        live.ingest.push(b"", decoder(), 24_000)
        assert live.ingest.sample_rate is None, "nothing came"
        live.ingest.push(pcm(0.1), decoder(), 24_000)
        with pytest.raises(ProblemError, match="has 24000 Hz, not 16000") as caught:
            live.connect(16_000)
        assert (caught.value.code, caught.value.value) == (ErrorCode.SAMPLE_RATE_CHANGED, 16_000)
        live.connect(24_000)


@virtually
async def test_the_backlog_is_taken_to_its_last_sample_and_a_message_over_it_not_at_all() -> None:
    async with running(backlog_s=2.0) as live:
        live.audio_start()
        live.ingest.push(pcm(2.0), decoder(), RATE)
        with pytest.raises(ProblemError) as caught:
            live.ingest.push(pcm(1 / RATE), decoder(), RATE)
        assert caught.value.code is ErrorCode.BACKLOG_EXCEEDED
        assert live.ingest.received_samples == 2 * RATE and live.queues().audio_s == 2.0
        voice = Voice(live)
        live.on_event(PlaybackStarted(segment=1))
        live.on_heard(1, 0.5)
        live.ingest.push(pcm(0.5), decoder(), RATE)
        assert live.queues().audio_s == 2.0 and voice.items


@pytest.mark.parametrize(("size", "taken"), [(1000, True), (1001, False)])
def test_a_message_has_a_largest_size(size: int, taken: bool) -> None:
    @virtually
    async def played() -> None:
        async with running(message_bytes=1000) as live:
            if taken:
                live.ingest.push(bytes(size), decoder(), RATE)
            else:
                with pytest.raises(ProblemError) as caught:
                    live.ingest.push(bytes(size), decoder(), RATE)
                assert problem_of(caught) == (ErrorCode.MESSAGE_TOO_LARGE, 1000)
            assert live.ingest.received_samples == (size // 2 if taken else 0)

    played()


@virtually
async def test_so_many_segments_may_be_open_and_a_clear_makes_room() -> None:
    async with running() as live:
        for _ in range(OPEN_SEGMENTS):
            live.audio_start()
        with pytest.raises(ProblemError) as caught:
            live.audio_start()
        assert caught.value.code is ErrorCode.BACKLOG_EXCEEDED
        with pytest.raises(ProblemError):
            live.speech.check()
        assert live.queues().segments == OPEN_SEGMENTS
        live.clear()
        live.audio_start()
        assert live.queues().segments == 1 and live.segments == OPEN_SEGMENTS + 1


@virtually
async def test_what_was_taken_is_acknowledged_five_times_a_second_at_most_and_always_in_the_end() -> None:
    async with running() as live:
        connection, one = live.connect(RATE), decoder()
        acks = list[int]()
        for _ in range(20):
            live.ingest.push(pcm(0.05), one, RATE)
            await asyncio.sleep(0.05)
            acks += [reported.received_samples for reported in await read(connection) if reported.type == "ack"]
        await asyncio.sleep(1.0)
        acks += [reported.received_samples for reported in await read(connection) if reported.type == "ack"]
        assert acks == sorted(set(acks)) and 4 <= len(acks) <= 7 and acks[-1] == live.ingest.received_samples == RATE
        await asyncio.sleep(5.0)
        assert not [reported for reported in await read(connection) if reported.type == "ack"], "nothing is said twice"


@virtually
async def test_an_interruption_returns_what_nobody_heard_also_what_the_agent_had() -> None:
    async with running() as live:
        voice = Voice(live)
        live.audio_start()
        live.ingest.push(pcm(6.0), decoder(), RATE)
        forwarded_s = live.at_agent_s
        assert forwarded_s > 0 and live.queues().audio_s == 6.0
        live.on_event(PlaybackStarted(segment=1))
        live.on_heard(1, 1.0)
        interrupting = asyncio.create_task(live.interrupt())
        await asyncio.sleep(0.2)
        assert not interrupting.done() and live.queues().clears == 1
        assert voice.items[-1].payload == '{"type":"clear"}'
        live.on_event(PlaybackFinished(segment=1, position_s=1.2, interrupted=True))
        live.on_event(Cleared(dropped_s=forwarded_s - 1.2))
        assert await interrupting == pytest.approx(6.0 - 1.2, abs=0.01)
        assert live.quiet and live.queues().clears == 0


@virtually
async def test_while_the_agent_is_lost_an_interruption_is_answered_at_once() -> None:
    async with running() as live:
        live.rewind(0, 0.0)
        live.audio_start()
        live.ingest.push(pcm(1.5), decoder(), RATE)
        connection = live.connect(RATE)
        assert await live.interrupt() == 1.5 and await live.interrupt() == 0.0
        reported = [message.type for message in await read(connection)]
        assert reported == ["hello", "playback.finished", "cleared", "cleared"]


@virtually
async def test_a_clear_is_not_sent_again_by_one_who_takes_the_session_over() -> None:
    changed: list[int] = []
    async with running(lambda: changed.append(1)) as live:
        live.audio_start()
        live.ingest.push(pcm(1.0), decoder(), RATE)
        changed.clear()
        live.clear()
        assert live.progress().cleared_samples == RATE and changed == [1], "the store hears of it at once"


@virtually
async def test_one_that_goes_on_begins_where_the_other_process_was() -> None:
    async with running() as live:
        live.inherit(Progress(segments=5, unfinished={4: True, 5: False}, sample_rate=24_000, received_samples=900))
        assert live.progress().segments == 5, "until an agent has spoken, what was known is what is known"
        connection = live.connect(24_000)
        live.without_agent()
        await asyncio.sleep(0.1)
        finished = [message for message in await read(connection) if message.type == "playback.finished"]
        assert [(one.segment, one.position_s, one.interrupted) for one in finished] == [(4, 0.0, True), (5, 0.0, True)]
        live.audio_start()
        assert live.segments == 6 and live.ingest.received_samples == 900 and live.quiet is False


@pytest.mark.parametrize(
    ("problem", "code", "kinds"),
    [
        (None, 1001, ["hello", "playback.finished", "cleared"]),
        (ProblemError(ErrorCode.AGENT_UNAVAILABLE, "gone"), 1011, ["hello", "playback.finished", "cleared", "error"]),
    ],
)
def test_the_end_answers_everything_that_was_open(problem: ProblemError | None, code: int, kinds: list[str]) -> None:
    @virtually
    async def played() -> None:
        async with running() as live:
            connection = live.connect(RATE)
            Voice(live)
            live.audio_start()
            live.ingest.push(pcm(1.0), decoder(), RATE)
            interrupting = asyncio.create_task(live.interrupt())
            await asyncio.sleep(0.01)
            live.end(problem)
            assert await interrupting == 0.0, "nobody is held"
            reported = []
            while (message := await connection.take()) is not None:
                reported.append(message.type)
            assert (reported, connection.close_code) == (kinds, code)

    played()


@pytest.mark.parametrize("explicit", [False, True])
def test_a_segment_whose_pcm_stays_away_is_ended(explicit: bool) -> None:
    """Soon where PCM alone opened it, with a warning and late where `audio.start` did."""

    @virtually
    async def played() -> None:
        ends = EXPLICIT_END_S if explicit else IDLE_END_S
        async with running() as live:
            connection = live.connect(RATE)
            if explicit:
                live.audio_start()
            live.ingest.push(pcm(0.1), decoder(), RATE)
            await asyncio.sleep(ends - 0.1)
            before = live.segments
            live.ingest.push(pcm(0.1), decoder(), RATE)
            assert live.segments == before, "it was still open"
            await asyncio.sleep(ends + 0.2)
            live.ingest.push(pcm(0.1), decoder(), RATE)
            assert live.segments == before + 1
            warnings = [reported.code for reported in await read(connection) if reported.type == "warning"]
            assert warnings == (["segment_timeout"] if explicit else [])

    played()
