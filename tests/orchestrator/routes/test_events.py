"""`GET /session/{id}/events` over a real socket."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from orchestrator.events import EventBus
from tests import waiting
from tests.fakes.stage import API_KEY, Stage


@dataclass
class EventBlock:
    """One block of the stream."""

    id: str | None = None
    type: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    comment: bool = False


async def blocks(answer: httpx.Response) -> AsyncIterator[EventBlock]:
    block = EventBlock()
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line == "":
            if block != EventBlock():
                yield block
            block = EventBlock()
        elif name == "id":
            block.id = value
        elif name == "event":
            block.type = value
        elif name == "data":
            block.data = json.loads(value)
        elif name == "":
            block.comment = True


@asynccontextmanager
async def following(running: Stage, session_id: str, **headers: str) -> AsyncIterator[AsyncIterator[EventBlock]]:
    async with running.http.stream("GET", f"/session/{session_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield blocks(answer)


async def until(stream: AsyncIterator[EventBlock], number: int) -> list[EventBlock]:
    """Events up to the one the test has published under this number."""
    seen = []
    async with asyncio.timeout(waiting.NEVER_S):
        async for block in stream:
            seen.append(block)
            if block.data.get("data", {}).get("number") == number:
                return seen
    raise AssertionError(f"event {number} did not come: {seen}")


def bus(running: Stage) -> EventBus:
    events: EventBus = running.app.state.context.events
    return events


async def test_events_come_as_they_happen_and_the_stream_ends_with_the_session(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    async with following(running, session_id) as stream:
        bus(running).publish(session_id, "warning", {"number": 1})
        seen = await until(stream, 1)
        reported = seen[-1]
        assert reported.type == reported.data["type"] == "warning" and reported.data["session_id"] == session_id
        assert reported.id == str(reported.data["id"]) and reported.data["at"].endswith("Z")
        bus(running).publish(session_id, "session.state", {"state": "stopped"})
        async with asyncio.timeout(waiting.NEVER_S):
            rest = [each async for each in stream]
        assert rest[-1].data["data"] == {"state": "stopped"}


async def test_last_event_id_resumes(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    async with following(running, session_id) as stream:
        for number in (1, 2):
            bus(running).publish(session_id, "warning", {"number": number})
        (*_, first, _) = await until(stream, 2)
    bus(running).publish(session_id, "warning", {"number": 3})
    async with following(running, session_id, **{"Last-Event-ID": str(first.id)}) as stream:
        seen = await until(stream, 3)
    assert [reported.data["data"].get("number") for reported in seen] == [2, 3]


async def test_a_quiet_stream_has_a_heartbeat(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.routes.session_events.HEARTBEAT_S", 0.02)
    session_id = (await running.start())["session_id"]
    async with following(running, session_id) as stream, asyncio.timeout(waiting.NEVER_S):
        async for reported in stream:
            if reported.comment:
                break


async def test_a_reader_that_leaves_is_forgotten(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    registry = running.app.state.context.metrics.registry
    async with following(running, session_id):
        assert registry.get_sample_value("avatar_event_streams") == 1
    await waiting.until(lambda: registry.get_sample_value("avatar_event_streams") == 0)
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("events-")] == []


@pytest.mark.parametrize(
    ("session", "header", "status", "code"),
    [
        ("none", "", 404, "session_not_found"),
        (None, "x1", 422, "invalid_request"),
        (None, "-1", 422, "invalid_request"),
    ],
)
async def test_what_is_wrong_is_reported_before_the_stream(
    running: Stage, session: str | None, header: str, status: int, code: str
) -> None:
    session_id = session or (await running.start())["session_id"]
    answer = await running.http.get(f"/session/{session_id}/events", headers={"Last-Event-ID": header})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_follows_it(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    bus(running).publish(session_id, "warning", {"number": 1})
    bus(running).publish(session_id, "session.state", {"state": "stopped"})
    url = f"{running.url}/session/{session_id}/events"
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sN", "--max-time", "10", "-H", f"Authorization: Bearer {API_KEY}", url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await curl.communicate()
    assert curl.returncode == 0
    assert "event: warning\ndata: {" in out.decode() and out.decode().endswith("}\n\n")
