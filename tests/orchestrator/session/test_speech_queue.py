"""Texts and PCM that wait in line: all of it is heard, in order, and a barge-in is never held up. Playing takes no real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from musetalk_agent.protocol.messages import (
    Cleared,
    LinkClear,
    PlaybackFinished,
    PlaybackStarted,
    SegmentEnd,
    SegmentStart,
    link_message,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.ingest import AudioFormat, AudioLimits, PcmDecoder
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.tts.synthesizer import SpeechChunk

RATE = 8000
CHUNK_S = 0.2
BACKLOG_S = 120.0


class Player:
    """Plays what it pulls, as fast as a test asks for it."""

    def __init__(self, live: SpeechPipeline) -> None:
        self.live = live
        self.pcm: dict[int, bytearray] = {}
        self.base: dict[int, float] = {}
        self.heard_s: dict[int, float] = {}
        self.ended: set[int] = set()
        self.order: list[int] = []
        self.finished: list[int] = []

    def wake(self) -> None:
        while (item := self.live.next_item(0.0, self.outstanding_s(0.0))) is not None:
            if isinstance(item.payload, bytes):
                self.pcm[item.segment] += item.payload
                continue
            message = link_message.validate_json(item.payload)
            if isinstance(message, SegmentStart):
                self.order.append(message.segment)
                self.base[message.segment] = self.heard_s[message.segment] = message.heard_s
                self.pcm[message.segment] = bytearray()
            elif isinstance(message, SegmentEnd):
                self.ended.add(message.segment)
            elif isinstance(message, LinkClear):
                self.clear()

    def clear(self) -> None:
        for number in self.waiting:
            self.finish(number, interrupted=True)
        self.live.on_event(Cleared(dropped_s=0.0))

    @property
    def waiting(self) -> list[int]:
        return [number for number in self.order if number not in self.finished]

    def there_s(self, number: int) -> float:
        return self.base[number] + len(self.pcm[number]) / 2 / RATE

    def outstanding_s(self, now: float) -> float:
        return sum(self.there_s(number) - self.heard_s[number] for number in self.waiting)

    def play(self, seconds: float) -> None:
        """So much passes; less when there is less."""
        for number in self.waiting:
            step = min(seconds, self.there_s(number) - self.heard_s[number])
            if step and self.heard_s[number] == self.base[number]:
                self.live.on_event(PlaybackStarted(segment=number))
            self.heard_s[number] += step
            seconds -= step
            self.live.on_heard(number, self.heard_s[number])
            if number not in self.ended or self.heard_s[number] < self.there_s(number) - 1e-6:
                return
            self.finish(number, interrupted=False)

    def finish(self, number: int, *, interrupted: bool) -> None:
        self.finished.append(number)
        position_s = self.heard_s[number]
        self.live.on_event(PlaybackFinished(segment=number, position_s=position_s, interrupted=interrupted))


class Voice:
    """A voice that is as fast as it is let; it speaks the number of its text."""

    def __init__(self) -> None:
        self.speaking = 0
        self.most_speaking = 0
        self.slow_to_close = asyncio.Event()
        self.slow_to_close.set()

    async def speak(self, number: int, seconds: float) -> AsyncGenerator[SpeechChunk, None]:
        self.speaking += 1
        self.most_speaking = max(self.most_speaking, self.speaking)
        pcm = np.full(round(CHUNK_S * RATE), number, "<i2").tobytes()
        try:
            for _ in range(round(seconds / CHUNK_S)):
                await asyncio.sleep(0)
                yield SpeechChunk(pcm, RATE, ())
        finally:
            self.speaking -= 1
            await self.slow_to_close.wait()


@asynccontextmanager
async def running(backlog_s: float = BACKLOG_S) -> AsyncIterator[tuple[SpeechPipeline, Voice]]:
    metrics = Metrics()
    limits = AudioLimits(backlog_s=backlog_s, bytes_per_s=1 << 30)
    live = SpeechPipeline("ses_1", limits, metrics, EventBus(metrics))
    task = asyncio.create_task(live.run())
    try:
        yield live, Voice()
    finally:
        live.end(None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def play_out(player: Player, steps: int = 3000) -> None:
    """Plays until nothing is left; fails when it stands still."""
    for _ in range(steps):
        await settle(5)
        if player.live.quiet:
            return
        player.play(1.0)
        assert player.live.queues().speech_s <= BACKLOG_S + 1e-6, "texts are made further ahead than the backlog"
    raise AssertionError(f"it stands still: {player.live.queues()}, heard {player.heard_s}")


def values(pcm: bytes | bytearray) -> tuple[set[int], float]:
    """The numbers that are spoken, and for how long."""
    return set(np.frombuffer(bytes(pcm), "<i2").tolist()), len(pcm) / 2 / RATE


async def test_ten_long_texts_are_spoken_in_order_and_the_33rd_that_waits_is_refused_at_once() -> None:
    async with running() as (live, voice):
        player = Player(live)
        live.attach_renderer(player)
        for number in range(1, 33):
            seconds = 120.0 if number <= 10 else 1.0
            assert live.speech.say(partial(voice.speak, number, seconds)).segment == number
        with pytest.raises(ProblemError) as refused:
            live.speech.check()
        assert (refused.value.code, refused.value.limit) == (ErrorCode.BACKLOG_EXCEEDED, 32)
        await play_out(player)
        assert player.finished == list(range(1, 33))
        for number in range(1, 33):
            assert values(player.pcm[number]) == ({number}, pytest.approx(120.0 if number <= 10 else 1.0))
        assert voice.most_speaking == 1, "a later text takes nothing that an earlier one needs"


async def test_pcm_and_texts_in_turn_are_heard_in_order() -> None:
    async with running() as (live, voice):
        player, decoder = Player(live), PcmDecoder(AudioFormat.S16LE)
        live.attach_renderer(player)
        for turn in range(5):
            live.speech.say(partial(voice.speak, 100 + turn, 100.0))
            live.audio_start()
            live.ingest.push(np.full(20 * RATE, turn + 1, "<i2").tobytes(), decoder, RATE)
            live.audio_end()
        assert live.queues().audio_s == 100.0
        with pytest.raises(ProblemError) as refused:
            live.ingest.push(bytes(2 * 21 * RATE), decoder, RATE)
        assert refused.value.code is ErrorCode.BACKLOG_EXCEEDED
        await play_out(player)
        assert player.finished == list(range(1, 11))
        spoken = [values(player.pcm[number]) for number in range(1, 11)]
        assert spoken == [
            part for turn in range(5) for part in (({100 + turn}, pytest.approx(100.0)), ({turn + 1}, 20.0))
        ]


async def test_texts_go_on_when_the_session_moves_to_another_agent() -> None:
    async with running() as (live, voice):
        first = Player(live)
        live.attach_renderer(first)
        for number in (1, 2, 3):
            live.speech.say(partial(voice.speak, number, 100.0))
        for _ in range(30):
            await settle()
            first.play(1.0)
        live.rewind(1, first.heard_s[1])
        live.speech.say(partial(voice.speak, 4, 10.0))
        await settle(2000)
        assert live.queues().speech_s == pytest.approx(BACKLOG_S, abs=CHUNK_S), "made ahead while nobody speaks"
        second = Player(live)
        live.attach_renderer(second)
        second.wake()
        await play_out(second)
        assert second.base[1] == pytest.approx(30.0)
        assert second.finished == [1, 2, 3, 4]
        assert [values(second.pcm[n])[1] for n in second.finished] == pytest.approx([70.0, 100.0, 100.0, 10.0])


@pytest.mark.parametrize("played_s", [0, 1, 60, 119, 121, 300])
async def test_a_barge_in_at_any_moment_empties_everything_and_the_next_text_is_spoken(played_s: int) -> None:
    async with running() as (live, voice):
        player = Player(live)
        live.attach_renderer(player)
        for number in range(1, 11):
            live.speech.say(partial(voice.speak, number, 120.0))
        for _ in range(played_s):
            await settle(5)
            player.play(1.0)
        live.clear()
        queues = live.queues()
        assert (queues.audio_s, queues.speech_s, queues.segments, queues.texts) == (0, 0, 0, 0)
        assert live.quiet, "the player has answered, in the same turn of the loop"
        await settle()
        assert voice.speaking == 0
        live.speech.say(partial(voice.speak, 11, 1.0))
        await play_out(player)
        assert player.finished[-1] == 11 and values(player.pcm[11]) == ({11}, 1.0)


async def test_a_text_after_a_barge_in_does_not_wait_for_a_voice_that_closes_slowly() -> None:
    async with running() as (live, voice):
        player = Player(live)
        live.attach_renderer(player)
        voice.slow_to_close.clear()
        live.speech.say(partial(voice.speak, 1, 10.0))
        await settle(5)
        live.clear()
        live.speech.say(partial(voice.speak, 2, 1.0))
        await settle()
        assert values(player.pcm[2]) == ({2}, 1.0)
        voice.slow_to_close.set()


async def test_a_text_that_waits_ends_with_the_session() -> None:
    async with running(backlog_s=1.0) as (live, voice):
        live.speech.say(partial(voice.speak, 1, 10.0))
        await settle()
        assert live.queues().speech_s == 1.0
    await settle()
    assert voice.speaking == 0
