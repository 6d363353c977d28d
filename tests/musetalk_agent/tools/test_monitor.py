"""The live table beside a real agent on loopback."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.tools import monitor
from musetalk_tools.processes import free_port
from tests.musetalk_agent.service.served import KEY, Agent, agent
from tests.musetalk_agent.stand import tone
from tests.waiting import NEVER_S, until

PROGRAM = """
import argparse, sys
from musetalk_agent.tools import monitor
parser = argparse.ArgumentParser()
monitor.add_arguments(parser)
sys.exit(monitor.run(parser.parse_args(sys.argv[1:])))
"""


async def run(*argv: str) -> int:
    """The command in a thread, so that the agent can answer."""
    parser = argparse.ArgumentParser()
    monitor.add_arguments(parser)
    return await asyncio.to_thread(monitor.run, parser.parse_args(argv))


@asynccontextmanager
async def speaking(here: Agent) -> AsyncIterator[None]:
    """A session that is sent speech at the pace of its sound, as a live voice does, for as long as it is looked at."""
    assert (await here.start()).status_code == 200
    async with here.link() as socket:
        await socket.recv()
        await socket.send('{"type":"segment.start","segment":1,"sample_rate":16000}')
        block = tone(0.04).tobytes()

        async def send() -> None:
            begun = asyncio.get_running_loop().time()
            for number in itertools.count(1):
                await socket.send(block)
                await asyncio.sleep(max(0.0, begun + number * 0.04 - asyncio.get_running_loop().time()))

        async def speaks() -> bool:
            """A picture of it was shown, too, which takes a busy machine a while."""
            (session,) = (await here.http.get("/debug")).json()["sessions"]
            return session["state"] == "speaking" and session["statistics"].get("skew_ms") is not None

        task = asyncio.create_task(send())
        try:
            await until(speaks)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_figures_of_a_session_that_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with agent(tmp_path, max_sessions=3) as here, speaking(here):
        url = f"http://127.0.0.1:{here.port}"
        assert await run(url, "--key", KEY, "--once", "--json", "--interval", "0.8") == 0
        reported: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (reported["status"], reported["engine"], reported["sessions_held"], reported["sessions_max"]) == (
            "ok",
            "pattern",
            1,
            3,
        )
        assert set(reported["queue"]) >= {"pattern"} and 0 <= reported["busy"]["pattern"] < 1
        (session,) = reported["sessions"]
        assert (session["session_id"], session["state"], session["fps_wanted"]) == ("s1", "speaking", 25)
        assert session["fps"] > 0 and math.isfinite(session["skew_ms"])
        assert 0 < session["lip_latency_p50_ms"] <= session["lip_latency_p95_ms"]
        assert session["viewers"] == 0 and all(session[name] >= 0 for name in ("underruns", "dropped", "held"))
        said = {
            "track_not_subscribed": "no participant of the room",
            "engine_slow": "too slow",
        }  # the second on a busy machine
        assert said[session["diagnosis"]] in session["message"]
        assert await run(url, "--key", KEY, "--once", "--interval", "0.2") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("ok · pattern on cpu · 1 of 3 sessions · ")
        assert lines[2].split()[:4] == ["session", "state", "engine", "fps"]
        row = lines[3].split()
        assert row[:3] == ["s1", "speaking", "pattern"]
        assert lines[-1].startswith("s1: ") and said[row[-1]] in lines[-1]


async def test_an_idle_agent_and_what_is_wrong_with_an_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(tmp_path) as here:
        url = f"http://127.0.0.1:{here.port}"
        monkeypatch.setenv("AGENT_API_KEY", KEY)
        assert await run(url, "--once", "--interval", "0.1") == 0
        assert capsys.readouterr().out.splitlines()[-1] == "no session"
        monkeypatch.delenv("AGENT_API_KEY")
        for argv, code, sentence in (
            ((url, "--once"), 2, "give the agent's key with --key, or set AGENT_API_KEY"),
            ((url, "--key", "wrong", "--once"), 1, "refuses the key"),
            ((url + "/nowhere", "--key", KEY), 1, "answers /debug with 404: is an agent there?"),
            ((f"http://127.0.0.1:{free_port()}", "--key", KEY), 1, "cannot be reached: "),
            (("127.0.0.1:1", "--key", KEY), 2, "is no address of an agent"),
            ((url, "--key", KEY, "--interval", "0"), 2, "--interval 0 is under 0.1 s"),
        ):
            assert await run(*argv) == code
            seen = capsys.readouterr()
            assert sentence in seen.err and seen.out == "" and KEY not in seen.err


@pytest.mark.usefixtures("heeded_ctrl_c")
async def test_it_waits_for_an_agent_that_went_away_and_ends_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        argv = [f"http://127.0.0.1:{here.port}", "--key", KEY, "--json", "--interval", "0.1"]
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None and child.stderr is not None
        try:
            async with asyncio.timeout(NEVER_S):
                for _ in range(2):
                    assert json.loads(await child.stdout.readline())["sessions"] == []
        except BaseException:
            child.kill()
            await child.wait()
            raise
    try:
        async with asyncio.timeout(NEVER_S):
            assert b"cannot be reached" in await child.stderr.readline()
            child.send_signal(signal.SIGINT)
            _, errors = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    assert child.returncode == 0 and b"Traceback" not in errors


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line = monitor.SessionLine(
        "\x1b[2Jx", "r", "ready", "warp", None, 25, None, None, None, 0.0, 0, 0, 0, 1, "no_audio", "No PCM\nyet."
    )
    seen = monitor.SessionTable(
        "2026-01-01T00:00:00Z", "ok", "0.1", "warp", "cpu", 1, 8, {}, {}, "The engine is 'warp'.", [line]
    )
    lines = monitor.table_lines(seen)
    assert lines[1] == "The engine is 'warp'." and lines[4].split()[1:6] == ["ready", "warp", "–/25", "–", "–"]
    monitor.show(lines, live=False)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "?[2Jx" in out and len(out.splitlines()) == len(lines)
    assert monitor.table_lines(replace(seen, sessions=[]))[-1] == "no session"
