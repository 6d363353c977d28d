"""The agent's port: the key comes before the body, bodies are bounded in size and time, and keys cannot be tried quickly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets

from musetalk_agent.protocol import http_server, throttle
from tests.musetalk_agent.service.served import HEADERS, KEY, Agent, agent
from tests.waiting import NEVER_S


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path) as made:
        yield made


async def answered(port: int, head: str, body: bytes = b"") -> tuple[int, str]:
    """Status and code of what comes, while the rest of the body does not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(NEVER_S):
            writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
            reported = await reader.readuntil(b"\r\n\r\n")
            length = int(reported.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(reported.split(b" ")[1]), json.loads(await reader.readexactly(length))["code"]
    finally:
        writer.close()


@pytest.mark.parametrize("path", ["/session/start", "/avatars", "/session/x/stop", "/nowhere"])
async def test_without_the_key_nothing_of_a_body_is_waited_for(here: Agent, path: str) -> None:
    for key in ("", "Authorization: Bearer wrong\n"):
        head = f"POST {path} HTTP/1.1\nHost: x\n{key}Content-Type: application/json\nContent-Length: 157286400\n"
        assert await answered(here.port, head, b" " * 1000) == (401, "unauthorized")


async def test_bodies_are_bounded(here: Agent) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b" " * (1 << 10)

    large = await here.http.post("/session/start", content=b" " * (http_server.MAX_BODY + 1))
    assert (large.status_code, large.json()["code"]) == (413, "message_too_large")
    streamed = await here.http.post("/session/start", content=endless(), headers={"Content-Type": "application/json"})
    assert (streamed.status_code, streamed.json()["code"]) == (413, "message_too_large")
    assert (await here.start("a")).status_code == 200


@pytest.mark.parametrize("path", ["/session/start", "/avatars"])
async def test_a_body_that_stops_coming_ends(here: Agent, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SILENCE_S", 0.2)
    head = f"POST {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {KEY}\nContent-Type: application/json\n"
    assert await answered(here.port, f"{head}Content-Length: 5000\n", b"PK") == (408, "body_timeout")


@pytest.fixture
def no_pardon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine guesses slowly, and would be forgiven meanwhile."""
    monkeypatch.setattr(throttle, "FAILURES_PER_S", 1e-3)


@pytest.mark.usefixtures("no_pardon")
async def test_wrong_keys_are_limited(here: Agent) -> None:
    assert (await here.http.get("/debug")).status_code == 200  # the orchestrator is known from here on
    codes = []
    for number in range(throttle.FAILURES_BURST + 5):
        answer = await here.http.get("/debug", headers={"Authorization": f"Bearer no{number}"})
        codes.append(answer.status_code)
    assert codes[0] == 401 and codes[-1] == 429 and int(answer.headers["Retry-After"]) >= 1
    url = f"ws://127.0.0.1:{here.port}/audio?session_id=x"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url, additional_headers={"Authorization": "Bearer no"}, proxy=None)
    assert refused.value.response.status_code == 429
    assert (await here.http.get("/debug")).status_code == 200


@pytest.mark.usefixtures("no_pardon")
async def test_a_stranger_with_the_right_key_waits_too(here: Agent) -> None:
    """Else the refusal would tell which guess was right."""
    async with httpx.AsyncClient(base_url=here.http.base_url, trust_env=False, timeout=NEVER_S) as stranger:
        for _ in range(throttle.FAILURES_BURST):
            await stranger.get("/debug", headers={"Authorization": "Bearer no"})
        assert (await stranger.get("/debug", headers=HEADERS)).status_code == 429
        assert (await stranger.get("/health")).status_code == 200
