"""The service in a real Pipecat pipeline, before the real orchestrator: what is said, what is cut off, what is resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.fakes.relay import Relay, relay
from tests.fakes.stage import API_KEY, Stage, stage
from tests.integrations.pipecat.conftest import START_S, Bot, program
from tests.waiting import until

BOT = Path(__file__).with_name("bot.py")


@asynccontextmanager
async def pipeline(**overrides: object) -> AsyncIterator[tuple[Bot, Stage, Relay]]:
    """A bot whose avatar is ready, at an agent that plays in real time; the relay carries bot and orchestrator."""
    async with stage(**overrides) as on, relay(on.url) as between:
        on.agent.pace = 1.0
        async with program(BOT, between.url, API_KEY) as bot:
            await bot.wait("started", within_s=START_S)
            yield bot, on, between


def said(on: Stage, segment: int) -> NDArray[np.int16]:
    """What reached the agent."""
    return np.frombuffer(bytes(on.agent.only.segments[segment].pcm), np.int16)


def ramp(seconds: float, rate: int = 24_000) -> NDArray[np.int16]:
    return (np.arange(round(seconds * rate)) % 30_000).astype(np.int16)


async def test_speech_goes_to_the_avatar_and_the_pipeline_hears_when_it_is_heard() -> None:
    async with pipeline() as (bot, on, _):
        ready = bot.of("ready")[0]
        assert ready["identities"] == [f"avatar-{ready['ready']}", f"voice-{ready['ready']}"]
        await bot.order(say=0.8)
        await bot.order(say=0.4, rate=48_000, channels=2)
        began = await bot.wait("down", "BotStartedSpeakingFrame")
        ended = await bot.wait("up", "BotStoppedSpeakingFrame")
        assert bot.reported.index(began) < bot.reported.index(ended)
        assert [s.heard for s in on.agent.only.segments.values()] == [s.end for s in on.agent.only.segments.values()]
        assert np.array_equal(said(on, 1), ramp(0.8))
        second = said(on, 2)
        assert abs(len(second) - 0.4 * 24_000) < 50
        assert np.abs(second[100:9000].astype(int) - ramp(0.4, 48_000)[::2][100:9000]).max() < 40
        assert bot.of("down", "TTSAudioRawFrame") == []  # else the transport would say it a second time
        assert len(bot.of("down", "TTSStartedFrame")) == len(bot.of("down", "TTSStoppedFrame")) == 2
        assert len(bot.of("down", "BotStartedSpeakingFrame")) == len(bot.of("up", "BotStartedSpeakingFrame")) == 1

        assert bot.of("own")[0]["own"] == [True, True, False], "before the start is answered any avatar may be its own"
        for who in (*ready["identities"], "avatar-ses_other"):
            await bot.order(hear=who)
        assert (await bot.wait("down", "UserAudioRawFrame"))["user"] == "avatar-ses_other"  # never its own voice

        session = on.agent.only
        await bot.order(say=0.7)
        await bot.order(end=True)
        over = await bot.wait("over")
        assert over["identities"] == ready["identities"], "its last sound may come when the session is over"
        assert session.segments[3].heard == 0.7 * 24_000
        assert len(bot.of("down", "BotStoppedSpeakingFrame")) == 2  # it had its say before the end
        assert bot.of("foreign")[0]["foreign"] == []
        assert on.agent.stopped == [ready["ready"]]
        assert bot.of("error") == []
        await bot.over()


async def test_interruption_silences_and_the_next_word_is_whole() -> None:
    async with pipeline() as (bot, on, _):
        await bot.order(say=30)  # more than may be under way: the pipeline waits, and the interruption must not
        await bot.wait("down", "BotStartedSpeakingFrame")
        await until(lambda: on.agent.only.segments[1].heard > 0.3 * 24_000)
        await bot.order(interrupt=True)
        await bot.order(say=0.5)
        await bot.wait("down", "BotStoppedSpeakingFrame")
        await bot.wait("down", "BotStoppedSpeakingFrame", count=2)
        session = on.agent.only
        assert session.clears == 1
        first, second = session.segments[1], session.segments[2]
        assert 0.1 < first.heard / first.rate < 30
        assert first.seconds < 30  # the rest was never sent
        assert np.array_equal(said(on, 2), ramp(0.5))
        assert second.heard == second.end
        await bot.order(interrupt=True)  # with nothing to silence
        await bot.order(say=0.1)
        await bot.wait("down", "BotStoppedSpeakingFrame", count=3)
        assert session.clears == 1


async def test_lost_line_costs_no_sample() -> None:
    async with pipeline() as (bot, on, between):
        await bot.order(say=1.2)
        await bot.wait("down", "BotStartedSpeakingFrame")
        connections = between.accepted
        between.cut()
        await bot.order(say=0.6)
        await until(lambda: between.accepted > connections)
        between.cut()
        await bot.wait("down", "BotStoppedSpeakingFrame")
        assert np.array_equal(said(on, 1), ramp(1.2))
        assert np.array_equal(np.concatenate([said(on, n) for n in sorted(on.agent.only.segments) if n > 1]), ramp(0.6))
        assert bot.of("error") == []


async def test_ended_session_and_refused_start_are_errors_with_codes() -> None:
    async with pipeline() as (bot, on, between):
        await bot.order(say=0.1)
        await bot.wait("down", "BotStartedSpeakingFrame")  # the avatar is ready before the audio path has connected
        await on.http.post(f"/session/{bot.of('ready')[0]['ready']}/stop")
        assert (await bot.wait("state"))["state"] == "draining"
        assert "(session_ended)" in (await bot.wait("error"))["error"]
        async with program(BOT, between.url, "no-key-of-ours") as other:
            assert "(unauthorized)" in (await other.wait("error", within_s=START_S))["error"]
