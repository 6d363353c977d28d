"""A real process at its most talkative: no key, token or address with a secret is in what it says, whichever library says it."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sys
from pathlib import Path

import httpx
import websockets

from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.room_service import FakeRoomService
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import LIVEKIT_SECRET
from tests.waiting import NEVER_S, until

KEY = "operator-key-of-this-test"
HOOK_SECRET = "whsec_" + base64.b64encode(b"h" * 32).decode()
OWN_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answering(http: httpx.AsyncClient) -> None:
    async def answers() -> bool:
        try:
            await http.get("/health")
        except httpx.TransportError:
            return False
        return True

    await until(answers)


async def use(url: str) -> list[str]:
    """What clients do, right and wrong; returns the secrets that they were given."""
    async with httpx.AsyncClient(base_url=url, timeout=NEVER_S, trust_env=False) as http:
        await answering(http)
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {
            "room": "room",
            "engine": "pattern",
            "idle_video_url": "https://clips.example/a.mp4?token=of-the-clip",
            "webhook_url": "https://127.0.0.1:9/hook?token=of-the-hook",
            "webhook_secret": OWN_SECRET,
        }
        started = (await http.post("/session/start", json=body, headers=headers)).json()
        await http.post("/session/start", json={**body, "fps": "x"}, headers=headers)
        await http.get("/sessions", headers={"Authorization": "Bearer a-wrong-key"})
        await http.get("/sessions?token=in-the-query")
        audio = started["audio_url"]
        async with websockets.connect(audio, proxy=None) as socket_:
            await socket_.recv()
            await socket_.send("{not json")
            await socket_.recv()
        for wrong in (f"{audio}&format=mp3", f"{audio}1"):
            try:
                async with websockets.connect(wrong, proxy=None):
                    raise AssertionError(wrong)
            except websockets.InvalidStatus:
                pass
        token = audio.partition("token=")[2]
        return [
            token,
            f"{token}1",
            started["viewer_token"],
            "of-the-clip",
            "of-the-hook",
            "in-the-query",
            "a-wrong-key",
        ]


async def test_a_talkative_orchestrator_tells_no_secret(tmp_path: Path) -> None:
    agent, rooms, port = FakeAgent(), FakeRoomService(), free_port()
    async with serving(plain_config(agent.app)) as agent_url, serving(plain_config(rooms.app)) as livekit_url:
        environment = {
            "PATH": os.environ["PATH"],
            "LIVEKIT_URL": livekit_url.replace("http", "ws"),
            "LIVEKIT_API_KEY": "devkey",
            "LIVEKIT_API_SECRET": LIVEKIT_SECRET,
            "ORCHESTRATOR_API_KEY": KEY,
            "AGENT_URL": agent_url,
            "AGENT_API_KEY": AGENT_KEY,
            "STORE_PATH": ":memory:",
            "ALLOW_PRIVATE_URLS": "true",
            "WEBHOOK_URL": "https://127.0.0.1:9/everybody?token=of-everybodys",
            "WEBHOOK_SECRET": HOOK_SECRET,
            "LOG_LEVEL": "DEBUG",
            "DRAIN_S": "0",
        }
        log = tmp_path / "log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "orchestrator", "serve", "--port", str(port)),
                env=environment,
                stdout=file,
                stderr=file,
            )
            try:
                secrets = await use(f"http://127.0.0.1:{port}")
            finally:
                process.terminate()
                await asyncio.wait_for(process.wait(), NEVER_S)
    said = log.read_text()
    assert "/audio?session_id=" in said and "a webhook was given up" in said, said[-2000:]
    assert all(line.startswith("{") for line in said.splitlines()), "a line is not in our format"
    for secret in [*secrets, KEY, AGENT_KEY, LIVEKIT_SECRET, HOOK_SECRET, OWN_SECRET, "of-everybodys"]:
        assert secret not in said, secret
