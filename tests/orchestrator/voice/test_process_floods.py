"""The voice's worker and its limits: one that floods, reads nothing or cannot be started, and how many lines it takes."""

from __future__ import annotations

import asyncio
import sys

import pytest

from orchestrator import worker_pipe
from orchestrator.metrics import Metrics
from orchestrator.voice import voice_worker as voice_process
from orchestrator.voice.voice_worker import LINES_MAX, VoiceBusyError, VoiceWorker
from orchestrator.voice.worker_messages import LeaveRoom
from tests.waiting import NEVER_S, turns, until

NONSENSE = "import sys\nwhile True: sys.stdout.buffer.write(b'\\xff' * 65536)"


async def test_a_worker_that_floods_is_replaced_and_closing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_process, "_EXIT_TIMEOUT_S", 0.2)
    worker = VoiceWorker(Metrics(), (sys.executable, "-c", NONSENSE))
    worker.open()
    try:
        await until(lambda: worker.statistics.losses >= 2)
    finally:
        async with asyncio.timeout(NEVER_S):
            await worker.aclose()


async def test_no_more_lines_are_taken_than_a_core_carries_and_one_that_leaves_makes_room() -> None:
    metrics = Metrics()
    worker = VoiceWorker(metrics, ("/nonexistent/worker",))
    try:
        lines = [worker.line("ws://127.0.0.1:9", lambda: "token") for _ in range(LINES_MAX)]
        with pytest.raises(VoiceBusyError, match=f"all {LINES_MAX} voice lines are taken"):
            worker.line("ws://127.0.0.1:9", lambda: "token")
        assert worker.lines == lines and metrics.voice_lines._value.get() == LINES_MAX
        lines[3].leave()
        assert lines[3] not in worker.lines
        assert worker.line("ws://127.0.0.1:9", lambda: "token") in worker.lines
    finally:
        await worker.aclose()


async def test_what_is_said_to_a_worker_that_is_not_there_is_said_to_the_next_one() -> None:
    worker = VoiceWorker(Metrics(), ("/nonexistent/worker",))
    assert not worker._send(LeaveRoom(line="line-1"))
    worker.open()
    try:
        await until(lambda: worker.statistics.losses >= 1)
        assert worker.pid is None and not worker._send(LeaveRoom(line="line-1"))
    finally:
        await worker.aclose()
    worker.open()
    assert worker.pid is None, "a closed one is not started again"


async def test_a_worker_that_reads_nothing_is_given_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line keeps what was not taken, so the next worker gets it."""
    monkeypatch.setattr(voice_process, "_UNSENT_BYTES", 4096)
    hello = worker_pipe.encode({"op": "hello"})
    program = f"import sys, time; sys.stdout.buffer.write({hello!r}); sys.stdout.flush(); time.sleep(1000)"
    monkeypatch.setattr(voice_process, "SILENCE_S", NEVER_S)
    monkeypatch.setattr(voice_process, "_EXIT_TIMEOUT_S", 0.01)
    worker = VoiceWorker(Metrics(), (sys.executable, "-c", program))
    worker.open()
    try:
        async with asyncio.timeout(NEVER_S):
            await worker.wait_ready()
        taken = 0
        while worker._send(LeaveRoom(line="line-1"), bytes(8192)):
            taken += 8192
            await turns(1)  # what was sent goes into the pipe
            assert taken < 1 << 20
        assert taken > 0
    finally:
        await worker.aclose()


async def test_a_worker_that_had_lived_for_a_while_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The back-off begins anew: here each one counts as settled, and thirty doublings would take weeks."""
    monkeypatch.setattr(voice_process, "BACKOFF_S", (0.001, 1e9))
    monkeypatch.setattr(voice_process, "_SETTLED_S", -1.0)
    worker = VoiceWorker(Metrics(), ("/nonexistent/worker",))
    worker.open()
    try:
        await until(lambda: worker.statistics.losses >= 30)
    finally:
        await worker.aclose()
