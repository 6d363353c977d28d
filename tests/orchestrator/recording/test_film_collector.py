"""What an agent sends of a film: whole, torn, wrong, or not at all; and agents that follow one another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.responses import Response, StreamingResponse

from musetalk_agent.protocol.http import FILM_ENTRY, FILM_LOG, FilmEntry, FilmOptions
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.audio.heard_speech import HeardSpeech
from orchestrator.metrics import Metrics
from orchestrator.recording.film_collector import FilmCollector
from orchestrator.recording.film_store import FilmIndex, FolderStore
from orchestrator.recording.growing_film import GrowingFilm
from tests.fakes.film_agent import FakeFilms
from tests.fakes.film_parts import RATE, part, watch
from tests.fakes.serving import plain_config, serving
from tests.waiting import until

NAME = "ses_1"
SPEECH_RATE = 16_000


@asynccontextmanager
async def client() -> AsyncIterator[AgentClient]:
    agents = AgentClient()
    try:
        yield agents
    finally:
        await agents.aclose()


@asynccontextmanager
async def films() -> AsyncIterator[tuple[FakeFilms, AgentLease]]:
    """An agent that has nothing but films."""
    made, app = FakeFilms(), FastAPI()
    made.add_to(app)
    async with serving(plain_config(app)) as url:
        yield made, AgentLease(url)


def film(tmp_path: Path) -> GrowingFilm:
    return GrowingFilm(FilmIndex(session_id=NAME), FolderStore(tmp_path))


def kept_speech() -> HeardSpeech:
    """Speech of a session that is recorded."""
    heard = HeardSpeech()
    heard.kept = True
    return heard


def record(agent: FakeFilms) -> None:
    """A film begins at an agent, and has 0.8 s."""
    agent.begin(NAME, FilmOptions())
    agent.grow(10)


async def whole(growing: GrowingFilm) -> bytes:
    return await growing.read(0, growing.size)


@pytest.mark.parametrize(
    "body",
    [b"\xff" * 64, FILM_ENTRY.pack(1, FilmEntry.FRAGMENT, 1 << 31), FILM_ENTRY.pack(1, 9, 0)],
    ids=["noise", "too large", "unknown kind"],
)
async def test_what_is_no_entry_is_an_error_of_the_agent(body: bytes) -> None:
    app = FastAPI()
    app.add_api_route("/session/{session_id}/recording", lambda: Response(body, headers={FILM_LOG: "a"}))
    async with client() as agents, serving(plain_config(app)) as url:
        with pytest.raises(ProblemError) as caught:
            async for _ in agents.film(AgentLease(url), NAME, 0, ""):
                pass
    assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE


async def test_entries_that_are_torn_come_when_they_are_whole_and_never_twice(tmp_path: Path) -> None:
    made = part()
    entries = [(FilmEntry.HEADER, made.header), *((FilmEntry.FRAGMENT, each) for each in made.fragments[:4])]
    body = b"".join(
        FILM_ENTRY.pack(n, k, len(p)) + p for n, (k, p) in enumerate([*entries, (FilmEntry.CLOSED, b"")], 1)
    )
    calls: list[int] = []

    async def torn(after: int = 0) -> StreamingResponse:
        async def send() -> AsyncIterator[bytes]:
            end = len(body) if len(calls) > 1 else len(body) * 2 // 3
            for at in range(0, end, 700):
                yield body[at : min(end, at + 700)]

        calls.append(after)
        return StreamingResponse(send(), headers={FILM_LOG: "a"})

    app = FastAPI()
    app.add_api_route("/session/{session_id}/recording", torn, response_model=None)
    growing = film(tmp_path)
    async with client() as agents, serving(plain_config(app)) as url:
        collector = FilmCollector(growing, agents, Metrics(), AgentLease(url))
        await collector.finish(60)
    assert len(calls) == 2 and growing.index.lost == 0 and growing.entry == 6
    assert len(watch(await whole(growing)).times) == 8


async def test_agents_are_read_one_after_the_other_and_one_that_is_gone_is_left(tmp_path: Path) -> None:
    growing = film(tmp_path)
    async with client() as agents, films() as (second, next_lease):
        async with films() as (first, lease):
            collector = FilmCollector(growing, agents, Metrics(), lease)
            record(first)
            await until(lambda: growing.seconds > 0.7)
        second.begin(NAME, FilmOptions())
        second.grow(10)
        collector.follow(next_lease)
        collector.follow(next_lease)
        await until(lambda: growing.seconds > 1.5)
        second.close(NAME)
        await collector.finish(60)
    assert growing.index.parts == 2 and len(watch(await whole(growing)).times) == 40
    assert await growing.read(growing.size, growing.size + 1) == b""


def speech(seconds: float, since: float = 0.0) -> bytes:
    """A tone of 1 kHz, int16 at `SPEECH_RATE`, of a segment from its second `since` on."""
    times = since + np.arange(round(seconds * SPEECH_RATE)) / SPEECH_RATE
    return (12_000 * np.sin(2 * np.pi * 1000 * times)).astype("<i2").tobytes()


def sounds_s(pcm: NDArray[np.float32]) -> float:
    """Seconds from the first loud sample to the last."""
    loud = np.flatnonzero(np.abs(pcm) > 0.08)
    return float(loud[-1] - loud[0] + 1) / RATE if len(loud) else 0.0


async def test_what_a_lost_agent_did_not_hand_over_is_said_between_its_part_and_the_next(tmp_path: Path) -> None:
    growing, heard = film(tmp_path), kept_speech()
    async with client() as agents, films() as (second, next_lease):
        async with films() as (first, lease):
            collector = FilmCollector(growing, agents, Metrics(), lease, heard)
            first.begin(NAME, FilmOptions())
            first.speak(NAME, 0.5, 1, 0.0)
            first.grow(10)
            await until(lambda: growing.seconds > 0.75)
        filmed_s = growing.seconds - 0.5
        assert growing.spoken[0] == 1 and abs(growing.spoken[1] - filmed_s) < 0.06
        heard.add(1, SPEECH_RATE, 0, speech(1.0))
        heard.add(1, SPEECH_RATE, SPEECH_RATE, speech(0.2, 1.0))  # the stand-in voice went on with it
        second.begin(NAME, FilmOptions())
        collector.follow(next_lease)
        heard.add(1, SPEECH_RATE, SPEECH_RATE * 6 // 5, speech(1.0, 1.2))  # says the second agent
        second.speak(NAME, 0.0, 1, 1.2)
        second.grow(40)
        await until(lambda: growing.seconds > 3.5)
        second.close(NAME)
        await collector.finish(60)
    seen, whole_film = watch(await whole(growing)), growing.seconds
    missing_s = 1.2 - filmed_s
    assert growing.index.parts == 2 and len(seen.times) == 20 + 75
    assert whole_film == pytest.approx(0.8 + missing_s + 3.0, abs=0.12)
    between = seen.pcm[round(0.81 * RATE) : round((0.8 + missing_s + 0.2) * RATE)]
    assert sounds_s(between) == pytest.approx(missing_s, abs=0.08)
    assert max(map(abs, seen.skews_ms)) < 1000 / 25


async def test_a_session_that_ends_without_another_agent_has_in_its_film_what_was_said(tmp_path: Path) -> None:
    growing, heard = film(tmp_path), kept_speech()
    async with client() as agents:
        async with films() as (first, lease):
            collector = FilmCollector(growing, agents, Metrics(), lease, heard)
            record(first)
            await until(lambda: growing.seconds > 0.75)
        heard.add(1, SPEECH_RATE, 0, speech(0.7))
        await collector.finish(60)
    assert sounds_s(watch(await whole(growing)).pcm[round(0.81 * RATE) :]) == pytest.approx(0.7, abs=0.05)


async def test_an_agent_that_has_ended_its_film_is_not_said_again(tmp_path: Path) -> None:
    growing, heard = film(tmp_path), kept_speech()
    async with client() as agents, films() as (first, lease):
        collector = FilmCollector(growing, agents, Metrics(), lease, heard)
        record(first)
        heard.add(1, SPEECH_RATE, 0, speech(0.7))
        first.close(NAME)
        await collector.finish(60)
    assert growing.seconds < 0.9 and watch(await whole(growing)).pcm.size < 0.9 * RATE


async def test_an_agent_that_takes_the_session_up_again_comes_when_it_is_asked(tmp_path: Path) -> None:
    growing, heard = film(tmp_path), kept_speech()
    async with client() as agents, films() as (only, lease):
        collector = FilmCollector(growing, agents, Metrics(), lease, heard)
        record(only)
        await until(lambda: growing.seconds > 0.75)
        first = only.logs.pop(NAME)
        record(only)
        first.add(FilmEntry.CLOSED)
        heard.add(1, SPEECH_RATE, 0, speech(0.7))
        collector.follow(AgentLease(lease.base_url))
        await until(lambda: growing.seconds > 2.2)
        await collector.aclose()
    assert growing.index.parts == 2 and growing.seconds == pytest.approx(0.8 + 0.7 + 0.8, abs=0.12)


async def test_what_the_agent_had_no_room_for_is_counted(tmp_path: Path) -> None:
    growing = film(tmp_path)
    growing.new_log("a")
    made = part()
    growing.take(1, FilmEntry.HEADER, made.header)
    growing.take(2, FilmEntry.FRAGMENT, made.fragments[0])
    growing.take(2, FilmEntry.FRAGMENT, made.fragments[0])
    growing.take(9, FilmEntry.FRAGMENT, made.fragments[7])
    growing.take(10, FilmEntry.FRAGMENT, b"no fragment")
    growing.take(11, FilmEntry.END, b"no JSON")
    growing.take(12, FilmEntry.SPOKEN, b"no mark")
    assert growing.index.lost == 7 and growing.index.parts == 1 and growing.spoken == (0, 0.0)
    await growing.flush()
    assert growing.stored_entry == 12
    again = GrowingFilm(FilmIndex.model_validate(await FolderStore(tmp_path).load(NAME)), FolderStore(tmp_path))
    assert (again.size, again.seconds, again.stored_entry) == (growing.size, growing.seconds, 12)
    growing.new_log("b")
    assert growing.stored_entry == 0
    growing.take(1, FilmEntry.FRAGMENT, made.fragments[0])  # its header is lost: the film's own is the same
    assert growing.index.lost == 7
