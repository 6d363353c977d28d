"""Orchestrators that are killed, restarted, drained and doubled: real processes, a real agent, LiveKit, Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.integrations.conversation import lasting_agent
from tests.orchestrator.survivors import RATE, Sender, Server, World, speech, world
from tests.servers.redis import redis_server
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.livekit


@pytest.fixture(scope="module", autouse=True)
def _agent_that_lasts() -> Iterator[None]:
    yield
    lasting_agent.end()


def nothing_lost(sender: Sender, seconds: float) -> None:
    """Every segment was finished once, none was cut, and together they are what was said."""
    finished = [message["segment"] for message in sender.of("playback.finished")]
    assert sorted(finished) == list(range(1, len(finished) + 1)), finished
    assert not any(message["interrupted"] for message in sender.of("playback.finished"))
    played = sum(message["position_s"] for message in sender.of("playback.finished"))
    assert played == pytest.approx(seconds, abs=0.005)
    assert sender.of("error") == []


async def ended(here: World, server: Server, session_id: str) -> None:
    """Stops the session; nothing of it is left."""
    stopped = await here.call(server, "POST", f"/session/{session_id}/stop")
    assert stopped.json()["state"] == "stopped"

    async def gone() -> bool:
        return not await here.avatars()

    await until(gone)


async def store_of(here: World, server: Server, reported: str) -> httpx.Response:
    """The answer of `/health` that says so of the store."""
    return await answers(here, server, "GET", "/health", lambda answer: bool(answer.json()["store"] == reported))


async def answers(
    here: World, server: Server, method: str, path: str, fits: Callable[[httpx.Response], bool]
) -> httpx.Response:
    """Asks again and again until an answer fits."""

    last = ""

    async def asked() -> httpx.Response | None:
        nonlocal last
        answer = await here.call(server, method, path)
        last = f"{answer.status_code} {answer.text[:500]}"
        return answer if fits(answer) else None

    try:
        return cast(httpx.Response, await until(asked))
    except AssertionError as error:
        raise AssertionError(f"the last answer was {last}") from error


def draining(answer: httpx.Response) -> bool:
    return bool(answer.json()["status"] == "draining")


async def test_killed_mid_sentence_and_started_again(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    store = str(tmp_path / "o.db")
    async with world(livekit_server) as here:
        first = await here.orchestrator(STORE_PATH=store)
        started = await here.begin(first)
        sender = Sender(lambda: started["audio_url"], speech(4.0))
        sending = asyncio.create_task(sender.run())
        await sender.until("playback.started")
        await until(lambda: sender.sent >= 1.5 * RATE)
        await first.kill()
        taken = await here.taken(started["session_id"])
        second = await here.orchestrator(first.port, STORE_PATH=store)
        await asyncio.wait_for(sending, NEVER_S)
        assert 0 < sender.hellos[-1] == taken < 4 * RATE
        assert await here.taken(started["session_id"]) == 4 * RATE
        nothing_lost(sender, 4.0)
        assert await here.avatars() == [started["avatar_identity"]]
        session = (await here.call(second, "GET", f"/session/{started['session_id']}")).json()
        assert (session["state"], session["moves"], session["room"]) == ("ready", 0, "survivors")
        await ended(here, second, started["session_id"])
        await second.kill()
        third = await here.orchestrator(first.port, STORE_PATH=store)
        over = (await here.call(third, "GET", f"/session/{started['session_id']}")).json()
        assert (over["state"], over["end_reason"]) == ("stopped", "stopped")
        again = await here.call(third, "POST", f"/session/{started['session_id']}/stop")
        assert {**again.json(), "funnel": []} == over  # which GET alone tells


@pytest.mark.network
async def test_sigterm_lets_speech_end_and_hands_the_session_over(
    livekit_server: LiveKitAccess, tmp_path: Path
) -> None:
    store = str(tmp_path / "o.db")
    async with world(livekit_server) as here:
        first = await here.orchestrator(STORE_PATH=store, DRAIN_S="30")
        started = await here.begin(first)
        sender = Sender(lambda: started["audio_url"], speech(2.0))
        sender.may_end.clear()
        sending = asyncio.create_task(sender.run())
        await sender.until("playback.started")
        first.signal(signal.SIGTERM)
        health = await answers(here, first, "GET", "/health", draining)
        assert health.status_code == 503
        refused = await here.call(first, "POST", "/session/start", room="other", engine="pattern")
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        sender.may_end.set()
        await asyncio.wait_for(sending, NEVER_S)
        nothing_lost(sender, 2.0)
        await asyncio.wait_for(first.ended(), NEVER_S)
        assert await here.avatars() == [started["avatar_identity"]]
        second = await here.orchestrator(first.port, STORE_PATH=store, DRAIN_S="60")
        more = Sender(lambda: started["audio_url"], speech(5.0))
        more.may_end.clear()
        sending = asyncio.create_task(more.run())
        await more.until("playback.started")
        second.signal(signal.SIGTERM)
        await answers(here, second, "GET", "/health", draining)
        assert more.sent < 5 * RATE
        second.signal(signal.SIGTERM)  # mid-sentence, and nobody waits any longer
        await asyncio.wait_for(second.ended(), NEVER_S)
        more.may_end.set()
        assert more.closes in ([], [1012])
        third = await here.orchestrator(first.port, STORE_PATH=store)
        await asyncio.wait_for(sending, NEVER_S)
        assert more.closes == [1012] and more.hellos[0] == 2 * RATE
        assert await here.taken(started["session_id"]) == 5 * RATE
        await ended(here, third, started["session_id"])


@pytest.mark.network
async def test_two_on_one_redis_do_not_fight(livekit_server: LiveKitAccess) -> None:
    async with redis_server() as redis, world(livekit_server) as here:
        one = await here.orchestrator(REDIS_URL=redis.url, PUBLIC_URL="https://one.example")
        two = await here.orchestrator(REDIS_URL=redis.url)
        started = await here.begin(one)
        path = f"/session/{started['session_id']}"
        seen = (await here.call(two, "GET", path)).json()
        assert (seen["state"], seen["avatar_identity"]) == ("ready", started["avatar_identity"])
        assert [s["session_id"] for s in (await here.call(two, "GET", "/sessions")).json()["sessions"]] == [
            seen["session_id"]
        ]
        for verb in ("stop", "interrupt"):
            refused = await here.call(two, "POST", f"{path}/{verb}")
            assert (refused.status_code, refused.json()["code"]) == (421, "session_elsewhere")
            assert refused.json()["value"] == "https://one.example"
        owner = one
        query = started["audio_url"].partition("?")[2]
        sender = Sender(lambda: f"ws://127.0.0.1:{owner.port}/audio?{query}", speech(3.0))
        sending = asyncio.create_task(sender.run())
        await sender.until("playback.started")
        await until(lambda: sender.sent >= 1.5 * RATE)
        await one.kill()
        owner = two
        assert (await here.call(two, "POST", f"{path}/stop")).status_code in (409, 421)
        await asyncio.wait_for(sending, NEVER_S)
        assert await here.taken(started["session_id"]) == 3 * RATE
        nothing_lost(sender, 3.0)
        assert await here.avatars() == [started["avatar_identity"]]
        await redis.stop()
        assert (await store_of(here, two, "failing")).status_code == 200
        refused = await here.call(two, "POST", "/session/start", room="other", engine="pattern")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert (await here.call(two, "GET", path)).json()["state"] == "ready"
        await redis.start()
        await store_of(here, two, "ok")
        await ended(here, two, started["session_id"])


@pytest.mark.network
async def test_an_owner_that_was_frozen_lets_go_of_what_another_took(livekit_server: LiveKitAccess) -> None:
    async with redis_server() as redis, world(livekit_server) as here:
        one = await here.orchestrator(REDIS_URL=redis.url, hasty=True)
        two = await here.orchestrator(REDIS_URL=redis.url, hasty=True)
        started = await here.begin(one)
        path = f"/session/{started['session_id']}"
        one.signal(signal.SIGSTOP)
        await answers(here, two, "POST", f"{path}/interrupt", lambda answer: answer.status_code == 200)
        one.signal(signal.SIGCONT)
        await answers(here, one, "POST", f"{path}/interrupt", lambda answer: answer.status_code == 421)
        session = (await here.call(two, "GET", path)).json()
        assert (session["state"], session["moves"]) == ("ready", 0)
        query = started["audio_url"].partition("?")[2]
        sender = Sender(lambda: f"ws://127.0.0.1:{two.port}/audio?{query}", speech(1.0))
        await asyncio.wait_for(sender.run(), NEVER_S)
        nothing_lost(sender, 1.0)
        assert await here.avatars() == [started["avatar_identity"]]
        await ended(here, two, started["session_id"])
