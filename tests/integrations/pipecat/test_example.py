"""The example of `docs/how-to/pipecat.md`, as printed, with Pipecat's LiveKit transport in a real room."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.bench.stack import demo
from tests.clients.printed import lines, printed
from tests.integrations.pipecat.conftest import PYTHON, START_S, program
from tests.viewer import Viewer, join_token
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit

BOT = Path(__file__).with_name("example_bot.py")


async def running_sessions(http: httpx.AsyncClient) -> list[str]:
    sessions = (await http.get("/sessions")).json()["sessions"]
    return [s["room"] for s in sessions if s["state"] in ("ready", "speaking")]


@pytest.mark.network
async def test_bot_is_seen_and_heard_once_from_its_avatar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = printed("docs/how-to/pipecat.md", "python")
    assert lines(example) <= 10
    (tmp_path / "example.py").write_text(example)
    if not PYTHON.is_file():
        pytest.skip("no environment with pipecat-ai: `tools/setup pipecat` makes it where PyPI can be had")
    monkeypatch.setenv("VOICE", "espeak:en-us")  # a bot has a voice of its own, and the face is not looked at
    async with demo("--engine", "pattern", "--no-conversation") as stack:
        info = stack.info
        access = LiveKitAccess(info["livekit_url"], info["livekit_api_key"], info["livekit_api_secret"])
        viewer = await Viewer().join(access.url, join_token(access, "demo", "viewer"))
        try:
            token = join_token(access, "demo", "bot", publish=True)
            arguments = (access.url, token, info["orchestrator_url"], info["api_key"])
            async with program(BOT, tmp_path / "example.py", *arguments) as bot:
                await bot.wait("started", within_s=START_S)
                assert await running_sessions(stack.http) == ["demo"]
                assert await viewer.until(NEVER_S, lambda: viewer.video)
                asked = time.monotonic()
                await bot.order(say="Hello.")
                assert await viewer.until(NEVER_S, lambda: len(viewer.heard(asked)) > 20)
                assert await viewer.until(NEVER_S, lambda: time.monotonic() - viewer.heard(asked)[-1] > 0.3)
                heard = len(viewer.heard(asked)) * 0.01
                asked = time.monotonic()
                await bot.order(say="Four seconds of a tone, and more than that.")
                assert await viewer.until(NEVER_S, lambda: len(viewer.heard(asked)) > 20)
                await bot.order(interrupt=True)
                assert await viewer.until(NEVER_S, lambda: time.monotonic() - viewer.heard(asked)[-1] > 0.5)
                assert len(viewer.heard(asked)) * 0.01 < 3.5, "it was interrupted"
                await bot.order(end=True)
                await bot.over()
            avatar = {sid for sid, who in viewer.owners.items() if who.startswith("avatar-ses_")}
            loud = {sid for sid, blocks in viewer.strands.items() if any(np.abs(b).max() > 3000 for _, b in blocks)}
            assert len(loud) == 1 and loud <= avatar  # not from the bot's own track as well
            assert heard == pytest.approx(0.6, abs=0.4)
            (ears,) = bot.of("heard")
            assert ears["heard"]["LiveKitInputTransport avatar"] > 10  # it comes to the bot, and is kept from its brain
            assert "WithoutAvatar avatar" not in ears["heard"]
            assert await running_sessions(stack.http) == []
        finally:
            await viewer.leave()
