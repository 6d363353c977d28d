"""A voice that somebody else publishes by what the agent tells: seen when it is heard, and never doubled."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.media.playout import LEAST_JUMP, VOICE_LEAD_S, SwitchingClock, VoiceTiming, VoiceTimingQueue
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.messages import PlaybackFinished
from tests.musetalk_agent.stand import Stand, bursts, stand, tone

BURSTS_AT_S = [0.48, 1.48]  # of `bursts(2)`, which last 2.48 s


class Voice:
    """Says what it is asked to, and nothing of what came too late."""

    made: Stand

    def __init__(self) -> None:
        self.reported: list[tuple[float, VoiceTiming]] = []
        self.timings = VoiceTimingQueue(self._note)

    def _note(self) -> None:
        self.reported += [(self.made.clock.now(), due) for due in self.timings.take()]

    def said_at(self, segment: int, second: float) -> float:
        """When that second left, by the last word about it that came before."""
        at = -1.0
        for came, due in self.reported:
            if due.segment == segment and due.heard_s <= second + 1e-9 and not due.held:
                assert due.at - came > 0.05, "it came too late to be said in time"
                at = due.at + second - due.heard_s
        return at


@pytest.mark.parametrize("gap_s", [0.0, 0.12, 0.7])
async def test_lips_move_when_the_reported_sound_leaves(executor: ThreadPoolExecutor, gap_s: float) -> None:
    voice = Voice()
    async with stand(executor, timings=voice.timings) as made:
        voice.made = made
        made.pipeline.begin(1, 16_000)
        await made.live(bursts(2))
        await made.pass_time(gap_s)
        await made.live(bursts(2))
        made.pipeline.end()
        made.pipeline.begin(2, 16_000)
        await made.live(bursts(2))
        made.pipeline.end()
        await made.pass_time(1)
    seconds = [(1, at) for at in BURSTS_AT_S] + [(1, 2.48 + at) for at in BURSTS_AT_S] + [(2, at) for at in BURSTS_AT_S]
    said = [voice.said_at(*second) for second in seconds]
    assert max(abs(white - at) for white, at in zip(made.whites(), said, strict=True)) <= 0.006
    came, first = voice.reported[0]
    assert first.heard_s == 0 and first.at - came == pytest.approx(VOICE_LEAD_S, abs=0.05)
    assert any(due.held for _, due in voice.reported) is (gap_s > 0)
    gaps = [b[0] - a[0] for a, b in zip(voice.reported, voice.reported[1:], strict=False) if not a[1].held]
    assert max(gaps) <= 1.0


async def test_a_last_picture_keeps_its_time_when_the_voice_begins_again_soon(executor: ThreadPoolExecutor) -> None:
    voice = Voice()
    async with stand(executor, timings=voice.timings) as made:
        voice.made = made
        made.pipeline.begin(1, 16_000)
        await made.live(bursts(1)[: 7_680 + 640])  # 40 ms of tone, and the voice stops
        await made.pass_time(0.1)
        await made.live(bursts(1))
        await made.pass_time(1)
    assert voice.said_at(1, 0.48) == pytest.approx(made.whites()[0], abs=0.006)
    assert voice.said_at(1, 1.0) == pytest.approx(made.whites()[1], abs=0.006)


async def test_it_waits_while_nothing_takes_the_pictures_and_says_no_word_twice(executor: ThreadPoolExecutor) -> None:
    voice = Voice()
    async with stand(executor, timings=voice.timings) as made:
        voice.made = made
        publisher = made.pipeline.player._publisher
        publisher.playout = playout = SwitchingClock(made.clock, ROOM_RATE, grain_s=0.0)
        playout.video_delay_s = VOICE_LEAD_S
        push, flows = publisher.push_audio, asyncio.Event()

        async def stalled(block: Pcm) -> None:
            await flows.wait()
            await push(block)

        flows.set()
        made.pipeline.player._publisher.push_audio = stalled  # type: ignore[method-assign]
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(bursts(3))
        made.pipeline.end()
        await made.pass_time(1)
        flows.clear()
        playout.held = True
        await made.pass_time(2)
        stood = [due for _, due in voice.reported if due.held]
        assert len(stood) == 1  # reported once, and in time
        assert next(came for came, due in voice.reported if due.held) < stood[0].at - 0.05
        playout.held = False
        flows.set()
        await made.pass_time(4)
    going_on = voice.reported[voice.reported.index(next(t for t in voice.reported if t[1].held)) + 1][1]
    assert going_on.heard_s == pytest.approx(stood[0].heard_s, abs=0.001) and going_on.at > stood[0].at + 1
    said = [voice.said_at(1, 0.48 + k) for k in range(3)]
    assert max(abs(white - at) for white, at in zip(made.whites(), said, strict=True)) <= 0.006


async def test_a_way_out_that_died_does_not_make_it_speak_twice(executor: ThreadPoolExecutor) -> None:
    voice = Voice()
    async with stand(executor, timings=voice.timings) as made:
        voice.made = made
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(bursts(2))
        await made.pass_time(1)
        made.pipeline.rewind(0)
        made.pipeline.end()
        await made.pass_time(3)
    assert [d.heard_s for _, d in voice.reported] == sorted(d.heard_s for _, d in voice.reported)
    assert made.events[-1][1] == PlaybackFinished(segment=1, position_s=2.48, interrupted=False)
    assert len(asyncio.all_tasks()) == 1


async def test_the_delay_of_a_stall_ends_in_the_next_silence_there_too(executor: ThreadPoolExecutor) -> None:
    seconds = (0.0, 0.88, 4.80)  # of the words: before the stall, after it, and after 2.02 s of silence
    quiet = np.zeros(32_320, np.int16)
    voice = Voice()
    async with stand(executor, timings=voice.timings) as made:
        voice.made = made
        begun = made.clock.now()
        made.pipeline.begin(1, 16_000)
        await made.live(np.concatenate([tone(0.6), quiet[:4_480]]))
        await made.pass_time(0.9)  # the sender's network is gone, and what it sent meanwhile comes at once
        made.pipeline.push(tone(0.9))
        await made.live(np.concatenate([tone(1.0), quiet, tone(0.6), quiet[:3_200]]))
        made.pipeline.end()
        await made.pass_time(2)
    said = [voice.said_at(1, second) for second in seconds]
    delays = [at - begun - second for at, second in zip(said, seconds, strict=True)]
    assert delays[1] - delays[0] > 0.8  # the stall
    assert delays[2] - delays[0] < LEAST_JUMP / ROOM_RATE + 0.1
    assert max(abs(white - at) for white, at in zip(made.whites(), said, strict=True)) <= 0.006
    assert 0.5 < float(made.pipeline.player.report()["cut_ms"] or 0) / 1000 < 0.9
