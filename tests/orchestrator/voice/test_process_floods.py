"""The voice's worker that floods: it is lost, ended and replaced, and closing does not wait for it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from orchestrator.metrics import Metrics
from orchestrator.voice import process as voice_process
from orchestrator.voice.process import VoiceWorker
from tests.waiting import NEVER_S, until

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
