"""What the client makes of agents that are slow, silent, endless or speak nonsense, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.service.agent_app import server_config
from orchestrator.agents import agent_client as module
from orchestrator.agents.agent_client import AgentClient, AgentFailed, AgentLease
from tests.waiting import NEVER_S, turns, until

HEALTH = {"status": "ok", "version": "1", "engine": "warp", "capacity": {"sessions": 0, "sessions_max": 9}}
SESSION = {
    "session_id": "ses_a",
    "state": "ready",
    "room": "r",
    "publisher": "livekit",
    "engine": "warp",
    "fps": 25,
    "width": 512,
    "height": 512,
    "diagnosis": {"code": "ok", "message": "."},
    "started_at": "2026-11-21T10:00:00Z",
}
REQUEST = AgentStartRequest(
    session_id="ses_a", room="r", livekit_url="ws://x", livekit_token="t", avatar=AvatarSource()
)


class RawAgent:
    """Answers by path with given bytes; a path without an answer is accepted and then silent."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.waiting = 0
        self.asked: list[str] = []

    def json(self, path: str, body: bytes, status: int = 200, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.answers[path] = head.encode() + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readline()).split(b" ")[1].decode()
            self.asked.append(path)
            if path not in self.answers:
                self.waiting += 1
                await reader.read()  # until the caller leaves, but for what it still sends
                while await reader.read(1 << 16):
                    pass
            writer.write(self.answers.get(path, b""))
            await writer.drain()
        except (ConnectionError, IndexError, ValueError):
            pass
        finally:
            writer.close()


class Trickle(RawAgent):
    """A byte now and then, for ever: each one is in time, the answer never is."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def raw(agent: RawAgent | None = None) -> AsyncIterator[tuple[RawAgent, AgentClient, AgentLease]]:
    agent, client = agent or RawAgent(), AgentClient()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(cast("asyncio.Task[None]", asyncio.current_task()))
        await agent.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    lease = AgentLease(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield agent, client, lease
    finally:
        await client.aclose()
        server.close()
        if serving:
            await asyncio.wait(serving, timeout=NEVER_S)
        gc.collect()
        await turns()  # httpx leaves the stream of an answer that was not read whole to the loop to close


async def test_hundreds_of_slow_starts_leave_health_stops_and_states_their_own_connections() -> None:
    async with raw() as (agent, client, lease):
        agent.json("/health", json.dumps(HEALTH).encode())
        agent.json("/session/ses_a", json.dumps(SESSION).encode())
        agent.json("/session/ses_a/stop", json.dumps(SESSION).encode())
        starts = []
        for count in range(10, 160, 10):  # 150 at once would pass the deadline of connecting on a busy machine
            starts += [asyncio.create_task(client.start(lease, REQUEST, 180.0)) for _ in range(10)]
            await until(lambda count=count: agent.waiting == count)
        assert (await client.health(lease)).status == "ok"
        assert (await client.session(lease, "ses_a")).session_id == "ses_a"
        assert (await client.stop(lease, "ses_a")).session_id == "ses_a"
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)


async def test_more_calls_of_a_kind_than_connections_are_refused_with_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._LANES, "start", 2)
    async with raw() as (agent, client, lease):
        starts = [asyncio.create_task(client.start(lease, REQUEST, 180.0)) for _ in range(2)]
        await until(lambda: agent.waiting == 2)
        with pytest.raises(ProblemError) as caught:
            await client._call(lease, "POST", "/session/start", timeout_s=0.2, json={})
        assert caught.value.code in (ErrorCode.AT_CAPACITY, ErrorCode.AGENT_UNAVAILABLE)
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)


async def test_an_answer_that_trickles_has_a_deadline_as_a_whole() -> None:
    async with raw(Trickle()) as (_, client, lease):
        async with asyncio.timeout(NEVER_S):
            with pytest.raises(ProblemError, match="TimeoutError") as caught:
                await client.session(lease, "ses_a", 0.3)
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (b"", "", "not the protocol's"),
        (b"\xff{", "", "not the protocol's"),
        (b"[1]", "", "not the protocol's"),
        (b"[" * 100_000, "", "not the protocol's"),
        (json.dumps(SESSION | {"playback": {"position_s": "nan"}}).encode(), "", "not the protocol's"),
        (json.dumps(SESSION | {"error": {"x": float("inf")}}).encode(), "", "not the protocol's"),
        (json.dumps(SESSION | {"last_audio_at": "yesterday"}).encode(), "", "not the protocol's"),
        (json.dumps(SESSION | {"last_audio_at": "0001-01-01T00:00:00"}).encode(), "", "not the protocol's"),
        (b"\x1f\x8b" + bytes(100), "content-encoding: gzip\r\n", "compressed"),
        (b" " * (module.MAX_ANSWER + 1), "", "passes 4194304 bytes"),
    ],
    ids=["empty", "bytes", "list", "deep", "nan", "inf", "no time", "no zone", "gzip", "long"],
)
@pytest.mark.parametrize("call", ["session", "upload"])
async def test_nonsense_is_an_agent_that_cannot_be_used(body: bytes, headers: str, why: str, call: str) -> None:
    if call == "upload" and body.startswith(b'{"session_id"') and b"Infinity" not in body:
        return  # a report is handed through: only its being JSON matters

    async def clip() -> AsyncIterator[bytes]:
        yield b"clip"

    async with raw() as (agent, client, lease):
        agent.json("/session/ses_a", body, headers=headers)
        agent.json("/avatars", body, headers=headers)
        with pytest.raises(AgentFailed, match=why) as caught:
            await (client.session(lease, "ses_a") if call == "session" else client.upload(lease, clip(), {}))
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE


async def test_an_address_that_is_none_is_an_agent_that_cannot_be_used() -> None:
    client = AgentClient()
    for address in ("", "http://", "http://[", "gopher://x", "http://127.0.0.1:99999"):
        with pytest.raises(ProblemError) as caught:
            await client.health(AgentLease(address))
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE, address
    await client.aclose()


_TEXT = st.text(max_size=30)
_PROBLEM = st.fixed_dictionaries(
    {
        "title": _TEXT,
        "status": st.integers(),
        "code": st.sampled_from([code.value for code in ErrorCode]) | _TEXT,
        "detail": _TEXT | st.just("x" * 100_000),
    },
    optional={
        "field": _TEXT,
        "limit": st.floats() | st.integers() | _TEXT,
        "value": st.floats() | st.integers() | _TEXT,
    },
)


@given(
    status=st.integers(400, 599),
    body=_PROBLEM.map(lambda problem: json.dumps(problem).encode()) | st.binary(max_size=200),
    wait=st.sampled_from(["", "3", "-1", "1.5", "²", "9" * 5000, "Wed, 21 Oct 2015 07:28:00 GMT"])
    | st.text(max_size=5),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_error_of_an_agent_becomes_one_of_ours(status: int, body: bytes, wait: str) -> None:
    answer = module.httpx.Response(status, headers={"Retry-After": wait.encode()}, content=body)
    problem = module._problem(answer)
    assert isinstance(problem.code, ErrorCode) and len(problem.detail) <= 2000
    assert problem.retry_after_s is None or 0 <= problem.retry_after_s < 100_000
    json.dumps(Problem.of(problem).model_dump(mode="json"), allow_nan=False)


async def test_no_connection_is_used_again_when_the_agent_may_just_be_closing_it() -> None:
    """A call on it would fail, and look like an agent that is gone."""
    client = AgentClient()
    kept_s = server_config(FastAPI(), host="127.0.0.1", port=0).timeout_keep_alive
    for lane in client._lanes.values():
        transport = lane._transport
        assert isinstance(transport, httpx.AsyncHTTPTransport)
        assert transport._pool._keepalive_expiry == module.IDLE_S <= kept_s / 2
    await client.aclose()
