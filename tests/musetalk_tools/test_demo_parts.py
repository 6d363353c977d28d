"""What the demo shows of its parts: where their logs lie, why one failed, that a slow one is waited for, a quiet Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from musetalk_tools import processes
from musetalk_tools.processes import Child, ChildFailed, free_port

NO_ADDRESS = "http://127.0.0.1:9/"

SLOW = """
import sys, http.server
print("awake", flush=True)
sys.stdin.read()
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""


def _part(code: str, log_path: Path, *arguments: str) -> Child:
    return Child("part", [sys.executable, "-c", code, *arguments], {}, log_path)


async def test_a_part_that_fails_shows_its_last_lines_and_writes_nothing_here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_path = tmp_path / "part.log"
    child = _part(
        "import sys; [print('line', n) for n in range(5000)]; sys.stdout.flush(); sys.exit('no such card')", log_path
    )
    await child.start()
    with pytest.raises(ChildFailed) as failed:
        await child.ready(NO_ADDRESS, 60)
    lines = str(failed.value).splitlines()
    assert lines[0] == "part ended with exit code 1 while starting"
    assert lines[-1].strip() == "no such card"
    assert "line 4999" in str(failed.value) and "line 0\n" not in str(failed.value) and len(lines) < 20
    assert capfd.readouterr() == ("", "")
    assert log_path.read_text().count("line") == 5000


async def test_a_part_without_a_log_file_adds_nothing_to_a_message() -> None:
    child = Child("part", [sys.executable, "-c", "raise SystemExit(3)"], {})
    await child.start()
    with pytest.raises(ChildFailed) as failed:
        await child.ready(NO_ADDRESS, 60)
    assert str(failed.value) == "part ended with exit code 3 while starting"


async def test_a_slow_part_is_waited_for_and_said_to_be_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part serves only once it was said three times that it is still starting."""
    monkeypatch.setattr(processes, "_REMIND_S", 0.01)
    port, gate = free_port(), tmp_path / "gate"
    os.mkfifo(gate)
    code = SLOW.replace("sys.stdin.read()", f"open({str(gate)!r}).read()")
    child = _part(code, tmp_path / "part.log", str(port))
    await child.start()
    said: list[str] = []

    def remind(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 3:
            gate.write_text("go")  # opens once the part reads, which it does first of all

    try:
        await child.ready(f"http://127.0.0.1:{port}/", remind=remind)
    finally:
        await child.stop()
    assert len(said) >= 3 and all(s.startswith("part is still starting after ") for s in said)


async def test_a_part_that_warms_up_is_waited_for_as_long_as_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a part may be silent, with what it says of itself in the reminders."""
    monkeypatch.setattr(processes, "_REMIND_S", 0.01)
    answers = [503, 503, 503, 503, 200]

    async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        clock.now += 40  # seconds between two looks
        body = b'{"status": "warming", "engine_note": "8 of 16 batch sizes"}'
        status = answers.pop(0)
        writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, said = Clock(), list[str]()
    monkeypatch.setattr(processes, "time", clock)
    server = await asyncio.start_server(health, "127.0.0.1", 0)
    child = _part("import time; time.sleep(600)", tmp_path / "part.log")
    await child.start()
    try:
        async with server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
            await child.ready(address, 60, remind=said.append)
    finally:
        await child.stop()
    assert answers == [] and said[-1].endswith("still starting after 120 s: 8 of 16 batch sizes")


async def test_the_services_end_quietly_at_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "LIVEKIT_URL": "ws://127.0.0.1:9",
        "LIVEKIT_API_KEY": "key",
        "LIVEKIT_API_SECRET": "s" * 32,
        "ORCHESTRATOR_API_KEY": "key_" + "x" * 32,
        "AGENT_URL": "http://127.0.0.1:9",
        "AGENT_API_KEY": "agent",
        "STORE_PATH": ":memory:",
        "DRAIN_S": "0",
        "VOICE_STANDBY": "off",
    }
    command = [sys.executable, "-m", "orchestrator", "serve", "--port", str(port)]
    child = Child("orchestrator", command, environment, tmp_path / "orchestrator.log")
    await child.start()
    try:
        await child.ready(f"http://127.0.0.1:{port}/openapi.json", 100)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
        assert await child.ended() == 0
    finally:
        await child.stop()
    assert "Traceback" not in (tmp_path / "orchestrator.log").read_text()
