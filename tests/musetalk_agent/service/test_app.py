"""The agent's service as a real server: keys, capacity, the inner link under cuts, what is left at the end."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets

from musetalk_agent.protocol.http import AgentSession
from musetalk_agent.protocol.messages import LinkAck, LinkHello, SegmentStart
from tests.musetalk_agent.avatars.clips import frames_zip, moving
from tests.musetalk_agent.service.served import KEY, agent
from tests.musetalk_agent.stand import tone
from tests.waiting import NEVER_S, until


async def _until(socket: websockets.ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(NEVER_S):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            event = message.get("event", message)
            if event["type"] == kind:
                return message


async def test_everything_but_health_needs_the_key(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        for method, path in (
            ("POST", "/session/start"),
            ("GET", "/debug"),
            ("POST", "/avatars"),
            ("GET", "/session/x"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/docs"),
            ("GET", "/redoc"),
            ("GET", "/nowhere"),
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


async def test_metrics_are_open_where_that_is_set(tmp_path: Path) -> None:
    async with agent(tmp_path, open_metrics=True) as here:
        answer = await here.http.get("/metrics", headers={"Authorization": ""})
        assert answer.status_code == 200 and "avatar_lip_latency_seconds" in answer.text
        assert (await here.http.get("/debug", headers={"Authorization": ""})).status_code == 401


async def test_capacity_conflict_and_unknown_things_have_codes(tmp_path: Path) -> None:
    async with agent(tmp_path, max_sessions=2) as here:
        assert AgentSession.model_validate((await here.start("a")).json()).state == "ready"
        again = await here.start("a")
        assert (again.status_code, again.json()["code"]) == (409, "session_conflict")
        await here.start("b")
        full = await here.start("c")
        assert (full.status_code, full.json()["code"], full.headers["Retry-After"]) == (503, "at_capacity", "5")
        capacity = (await here.http.get("/health")).json()["capacity"]
        assert {name: capacity[name] for name in ("sessions", "sessions_max", "setting", "limited_by", "card")} == {
            "sessions": 2,
            "sessions_max": 2,
            "setting": 2,
            "limited_by": "setting",
            "card": None,
        }
        assert capacity["processor"] >= 1 and capacity["pacing"] >= 1, "they are reported, and do not rule"
        for _ in range(2):
            assert (await here.http.post("/session/a/stop")).json()["state"] == "stopped"
        assert (await here.http.get("/session/a")).json()["state"] == "stopped"
        assert (await here.start("a")).status_code == 200, "a session may come back"
        await here.http.post("/session/a/stop")
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
                async with asyncio.timeout(NEVER_S):
                    while True:
                        await older.recv()
            await newer.send(b"\x01")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                async with asyncio.timeout(NEVER_S):
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
                async with asyncio.timeout(NEVER_S):
                    while True:
                        await socket.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        with pytest.raises(websockets.InvalidStatus) as ended:
            await here.link()
        assert ended.value.response.status_code == 409


async def test_the_link_tells_what_an_adopter_must_know(tmp_path: Path) -> None:
    part = tone(0.5).tobytes()
    async with agent(tmp_path) as here:
        await here.start()
        async with here.link() as socket:
            assert json.loads(await socket.recv()) == LinkHello(items=0).model_dump(exclude_none=True)
            for number, received, heard_s in ((3, 40_000, 1.25), (4, None, 0), (5, 48_000, 0)):
                start = SegmentStart(segment=number, sample_rate=16_000, received=received, heard_s=heard_s)
                await socket.send(start.model_dump_json())
                await socket.send(part)
                await socket.send(json.dumps({"type": "segment.end", "segment": number}))
            acks: list[LinkAck] = []
            positions: list[tuple[int, float]] = []
            async with asyncio.timeout(NEVER_S):
                while True:
                    message = json.loads(await socket.recv())
                    if message.get("id") == 5:
                        break
                    if message["type"] == "link.ack":
                        acks.append(LinkAck.model_validate(message))
                        positions.append((acks[-1].segment, acks[-1].heard_s))
        assert positions == sorted(positions)
        # reported every 100 ms while speech is heard, from the segment's own beginning
        assert sum(segment == 3 for segment, _ in positions) >= 2
        assert all(1.25 <= heard <= 1.75 for segment, heard in positions if segment == 3)
        assert acks[-1].frames > 20 and acks[-1].draining is False
        assert message["event"] == {"type": "playback.finished", "segment": 5, "position_s": 0.5, "interrupted": False}
        async with here.link() as socket:
            hello = LinkHello.model_validate_json(await socket.recv())
            assert (hello.items, hello.segments, hello.received_samples) == (9, 5, 56_000)
            assert hello.events == 5  # the third segment was reported as begun by another agent


async def test_what_was_heard_elsewhere_counts_as_taken(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start()
        async with here.link() as socket:
            await socket.send(
                SegmentStart(segment=3, sample_rate=16_000, received=40_000, heard_s=1.0).model_dump_json()
            )
            await socket.send(tone(0.5).tobytes())
            while (await _until(socket, "link.ack"))["items"] < 2:
                continue
        async with here.link() as socket:
            assert (await _until(socket, "link.hello"))["received_samples"] == 40_000 + 16_000 + 8_000


async def test_a_voice_elsewhere_is_reported_when_its_sound_is_due(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start(voice="orchestrator")
        async with here.link() as socket:
            await socket.send('{"type":"segment.start","segment":1,"sample_rate":16000,"heard_s":2.0}')
            await socket.send(tone(1.2).tobytes())
            reported = [await _until(socket, "link.voice") for _ in range(3)]
    first, again, last = reported
    assert (first["segment"], first["heard_s"], first["held"]) == (1, 2.0, False)
    assert math.isfinite(first["in_s"])
    assert 2.0 < again["heard_s"] < last["heard_s"] <= 3.24


async def test_a_session_that_is_starting_can_be_stopped(tmp_path: Path) -> None:
    async with agent(tmp_path, allow_private_urls=True) as here, silent_host() as (port, asked):
        source = {"frames_zip_url": f"http://127.0.0.1:{port}/never.zip"}
        starting = asyncio.create_task(here.start(engine="warp", avatar=source))
        await asked.wait()
        assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 1
        stopped = await here.http.post("/session/s1/stop")
        assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
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


async def test_a_caller_who_leaves_gives_its_start_up(tmp_path: Path) -> None:
    """The clip would take many seconds to prepare; no bundle of it is ever made, and its place is free."""
    async with agent(tmp_path, engine="warp") as here:
        clip = frames_zip(moving(300, 256, step=0.1))
        avatar_id = (await here.http.post("/avatars", content=clip, timeout=60)).json()["avatar_id"]
        start = asyncio.create_task(here.start(avatar={"avatar_id": avatar_id}, engine="warp"))
        await until(lambda: list((tmp_path / "parts").iterdir()))
        assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 1
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await until(lambda: not list((tmp_path / "parts").iterdir()))

        async def free() -> bool:
            return (await here.http.get("/health")).json()["capacity"]["sessions"] == 0

        await until(free)
        assert not list((tmp_path / "bundles").iterdir())
