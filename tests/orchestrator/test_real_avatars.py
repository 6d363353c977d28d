"""The avatar library with a real agent and the `warp` engine: prepared ahead, shown, changed while it speaks, waving."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_tools.processes import Child, free_port
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.stage import Stage, stage
from tests.musetalk_agent.avatars.clips import frames_zip, moving
from tests.waiting import NEVER_S, until

SIDE = 128
FACE = [np.ascontiguousarray(frame) for frame in moving(12, SIDE)]
MIRRORED = [np.ascontiguousarray(frame[:, ::-1]) for frame in FACE]
SPEECH = (np.sin(np.arange(24_000) * 0.3) * 8000).astype("<i2").tobytes()


@asynccontextmanager
async def with_warp(folder: Path, **overrides: Any) -> AsyncIterator[Stage]:
    """An orchestrator with a library, and an agent as a process of its own. `overrides` as `stage` has them."""
    port = free_port()
    command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "AGENT_API_KEY": AGENT_KEY,
        "AGENT_ENGINE": "warp",
        "LOG_LEVEL": "WARNING",
        "AVATAR_CACHE_DIR": str(folder),
    }
    agent = Child("agent", command, environment)
    await agent.start()
    try:
        await agent.ready(f"http://127.0.0.1:{port}/health", NEVER_S)
        library = folder / "library"
        async with stage(agent_url=f"http://127.0.0.1:{port}", avatars_dir=library, **overrides) as made:
            yield made
    finally:
        await agent.stop()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Stage]:
    async with with_warp(tmp_path) as made:
        yield made


async def ready(stack: Stage, frames: list[Any]) -> str:
    answer = await stack.http.post("/avatars", content=frames_zip(frames), headers={"X-Filename": "a.zip"})
    assert answer.status_code == 201, answer.text
    path, progress = f"/avatars/{answer.json()['avatar_id']}", [0.0]

    async def is_ready() -> bool:
        body = (await stack.http.get(path)).json()
        assert body["state"] in ("preparing", "ready"), body
        progress.append(body["progress"])
        return body["state"] == "ready"

    await until(is_ready)
    assert progress == sorted(progress) and progress[-1] == 1.0
    return str(answer.json()["avatar_id"])


async def test_an_avatar_from_the_library_to_the_screen(running: Stage) -> None:
    """One stack for all of it: an agent takes seconds to start."""
    http = running.http
    first, second = await ready(running, FACE), await ready(running, MIRRORED[::-1])
    body = (await http.get(f"/avatars/{first}")).json()
    assert (body["report"]["frames"], body["report"]["width"]) == (12, SIDE)
    poster = cv2.imdecode(np.frombuffer((await http.get(f"/avatars/{first}/poster.jpg")).content, np.uint8), 1)
    assert np.abs(poster.astype(int) - FACE[0]).mean() < 6

    wave = await http.put(f"/avatars/{first}/clips/wave", content=frames_zip(MIRRORED))
    assert wave.status_code == 201, wave.text
    far = [cv2.copyMakeBorder(frame, 64, 64, 64, 64, cv2.BORDER_REPLICATE) for frame in FACE]
    refused = await http.put(f"/avatars/{first}/clips/far", content=frames_zip(far))
    assert (refused.status_code, refused.json()["code"]) == (422, "clip_mismatch")
    broken = await http.post("/avatars", content=b"no clip at all")
    assert (broken.status_code, broken.json()["code"]) == (422, "avatar_undecodable")

    async with running.live(connect_livekit=False, avatar_id=first) as (started, line):
        assert (started["avatar"]["cached"], started["engine"]) == (True, "warp")
        path = f"/session/{started['session_id']}"
        await line.say("audio.start")
        await line.socket.send(SPEECH)
        await line.wait("playback.started")
        played = await http.post(f"{path}/action", json={"name": "wave"})
        assert played.status_code == 202, played.text
        shown = await http.post(f"{path}/avatar", json={"avatar_id": second})
        assert shown.status_code == 200, shown.text
        assert (shown.json()["avatar"]["avatar_id"], shown.json()["avatar"]["cached"]) == (second, True)
        await line.say("audio.end")
        finished = await line.wait("playback.finished")
        assert (finished["position_s"], finished["interrupted"]) == (pytest.approx(1.5, abs=0.04), False)
        unusable = await http.post(f"{path}/avatar", json={"idle_video_url": "http://127.0.0.1:9/x.mp4"})
        assert (unusable.status_code, unusable.json()["code"]) == (422, "avatar_url_forbidden")
        assert (await http.get(path)).json()["avatar_id"] == second, "the old one stays"
        assert (await http.post(f"{path}/action", json={"name": "wave"})).status_code == 404, "of the first one only"
        (session,) = (await http.get("/debug/musetalk")).json()["sessions"]
        assert not [stage for stage in session["funnel"] if stage["last_error"]]
        assert session["statistics"]["failed"] == 0
        await http.post(f"{path}/stop")
    for avatar in (first, second):
        assert (await http.delete(f"/avatars/{avatar}")).status_code == 204
