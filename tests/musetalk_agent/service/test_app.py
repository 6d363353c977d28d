"""The agent's service as a real server: keys, capacity, the inner link under cuts, what is left at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets

from musetalk_agent.protocol.http import AgentSession
from tests.musetalk_agent.service.served import KEY, agent
from tests.musetalk_agent.stand import tone


async def _until(socket: websockets.ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            event = message.get("event", message)
            if event["type"] == kind:
                return message


async def test_everything_but_health_and_metrics_needs_the_key(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        for method, path in (
            ("POST", "/session/start"),
            ("GET", "/debug"),
            ("POST", "/avatars"),
            ("GET", "/session/x"),
        ):
            for headers in (
                {"Authorization": ""},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Basic {KEY}"},
            ):
                answer = await here.http.request(method, path, headers=headers)
                assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
        assert (await here.http.get("/health", headers={"Authorization": ""})).json()["status"] == "ok"
        assert "avatar_lip_latency_seconds" in (await here.http.get("/metrics")).text
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{here.port}/audio?session_id=x", proxy=None)
        assert refused.value.response.status_code == 401
        with pytest.raises(websockets.InvalidStatus) as unknown:
            await here.link("x")
        assert unknown.value.response.status_code == 404


async def test_capacity_conflict_and_unknown_things_have_codes(tmp_path: Path) -> None:
    async with agent(tmp_path, max_sessions=2) as here:
        assert AgentSession.model_validate((await here.start("a")).json()).state == "ready"
        again = await here.start("a")
        assert (again.status_code, again.json()["code"]) == (409, "session_conflict")
        await here.start("b")
        full = await here.start("c")
        assert (full.status_code, full.json()["code"], full.headers["Retry-After"]) == (503, "at_capacity", "5")
        assert (await here.http.get("/health")).json()["capacity"] == {"sessions": 2, "sessions_max": 2}
        for _ in range(2):
            assert (await here.http.post("/session/a/stop")).json()["state"] == "stopped"
        assert (await here.http.get("/session/a")).json()["state"] == "stopped"
        assert (await here.start("c")).status_code == 200
        assert (await here.start("d", engine="nonsense")).json()["code"] == "engine_unknown"
        await here.http.post("/session/c/stop")
        assert (await here.start("d", engine="nonsense")).json()["code"] == "engine_unknown"
        assert (await here.start("d", engine="musetalk")).json()["code"] == "weights_missing"
        wrong = (await here.start("d", picture={"fps": 99})).json()
        assert (wrong["code"], wrong["field"]) == ("invalid_request", "picture.fps")
        assert (await here.http.get("/nowhere")).json()["code"] == "not_found"


async def test_items_are_taken_once_however_often_the_link_is_cut(tmp_path: Path) -> None:
    speech = tone(1.0)
    items: list[str | bytes] = ['{"type":"segment.start","segment":1,"sample_rate":16000}']
    items += [speech[at : at + 640].tobytes() for at in range(0, len(speech), 640)]
    items.append('{"type":"segment.end","segment":1}')
    seen, sent = 0, 0
    async with agent(tmp_path) as here:
        await here.start()
        while sent < len(items):
            async with here.link(after=seen) as socket:
                hello = json.loads(await socket.recv())
                sent = hello["items"]
                for item in items[sent : sent + 5]:
                    await socket.send(item)
                if sent + 5 >= len(items):
                    finished = await _until(socket, "playback.finished")
                    seen = finished["id"]
                    break
                socket.transport.abort()
        assert finished["event"] == {"type": "playback.finished", "segment": 1, "position_s": 1.0, "interrupted": False}
        status = (await here.http.get("/session/s1")).json()
        assert {s["stage"]: s["count"] for s in status["funnel"]}["samples"] == len(speech)
        async with here.link(after=seen) as socket:
            await _until(socket, "link.ack")
            await socket.send('{"type":"clear"}')
            assert (await _until(socket, "cleared"))["id"] == seen + 1


async def test_a_newer_link_takes_over_and_nonsense_is_refused(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start()
        async with here.link() as older, here.link() as newer:
            assert json.loads(await newer.recv())["type"] == "link.hello"
            with pytest.raises(websockets.ConnectionClosed):
                async with asyncio.timeout(5):
                    while True:
                        await older.recv()
            await newer.send(b"\x01")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                async with asyncio.timeout(5):
                    while True:
                        await newer.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


async def test_the_link_closes_with_1001_when_the_session_is_over(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start()
        async with here.link() as socket:
            await socket.send('{"type":"segment.start","segment":1,"sample_rate":16000}')
            await socket.send(np.zeros(16_000, np.int16).tobytes())
            await _until(socket, "playback.started")
            await here.http.post("/session/s1/stop")
            assert (await _until(socket, "playback.finished"))["event"]["interrupted"] is True
            with pytest.raises(websockets.ConnectionClosed) as closed:
                async with asyncio.timeout(5):
                    while True:
                        await socket.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        with pytest.raises(websockets.InvalidStatus) as ended:
            await here.link()
        assert ended.value.response.status_code == 409


async def test_a_session_that_is_starting_can_be_stopped(tmp_path: Path) -> None:
    async with agent(tmp_path, allow_private_urls=True) as here, silent_host() as (port, asked):
        source = {"frames_zip_url": f"http://127.0.0.1:{port}/never.zip"}
        starting = asyncio.create_task(here.start(engine="warp", avatar=source))
        await asked.wait()
        assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 1
        stopped = await here.http.post("/session/s1/stop")
        assert stopped.status_code == 404
        answer = await starting
        assert (answer.status_code, answer.json()["code"]) == (409, "session_ended")
        assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 0


@asynccontextmanager
async def silent_host() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A host that takes a connection and never answers."""
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        try:
            await reader.read(-1)
        finally:
            writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        await server.wait_closed()
