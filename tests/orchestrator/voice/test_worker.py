"""The voice worker with a real SFU and real listeners."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import psutil
import pytest

from orchestrator.livekit_server import LiveKitAccess
from orchestrator.metrics import Metrics
from orchestrator.voice.line import VoiceLine
from orchestrator.voice.messages import Report
from orchestrator.voice.process import VoiceWorker
from tests.orchestrator.voice.tones import Ears, heard_all, once, tone_code
from tests.viewer import join_token

pytestmark = pytest.mark.livekit
RATE = 16_000


@asynccontextmanager
async def worker() -> AsyncIterator[VoiceWorker]:
    voices = VoiceWorker(Metrics())
    voices.open()
    try:
        async with asyncio.timeout(20):
            await voices.wait_ready()
        yield voices
    finally:
        await voices.aclose()


@asynccontextmanager
async def listening(
    access: LiveKitAccess, voices: VoiceWorker, room: str
) -> AsyncIterator[tuple[Ears, VoiceLine, list[Report]]]:
    """A line that joins a room of its own, its listener and its reports."""
    ears, reports = Ears(), list[Report]()
    await ears.join(access.url, join_token(access, room, "viewer"))
    line = voices.line(access.url, lambda: join_token(access, room, "voice-1", "agent", publish=True), reports.append)
    try:
        yield ears, line, reports
        line.leave()
        assert await ears.until(3, lambda: "voice-1" in ears.gone)
    finally:
        line.leave()
        await ears.leave()


async def send_live(line: VoiceLine, pcm: bytes) -> None:
    begun, step = time.monotonic(), 640
    for at in range(0, len(pcm) // 2, step):
        await asyncio.sleep(max(0.0, begun + (at + step) / RATE - time.monotonic()))
        line.play(1, RATE, at, pcm[2 * at : 2 * (at + step)])


async def _everything_is_heard_once_and_in_order(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "order") as (ears, line, reports):
        line.join()
        line.play(1, RATE, 8000, tone_code(25)[16_000:])  # from 0.5 s on, faster than it is heard
        line.end(1)
        assert await heard_all(ears, 24)
        durations = ears.durations(25)
        assert durations[:5].sum() <= 0.02 and once(durations[6:]), durations
        symbols = [s for _, s in ears.spoken() if 5 <= s < 25]
        assert sum(np.diff(symbols) < 0) <= 1 and ears.longest_gap() < 0.3  # a window at an edge may be misread
        assert ears.tracks == [("avatar-voice", "voice-1")]
        assert await ears.until(2, lambda: [n for r in reports for n in r.finished] == [1])
        assert line.position().segment == 1 and line.position().heard_s == pytest.approx(2.5, abs=0.01)
        view = line.view()
        assert view["state"] == "live" and view["track"].startswith("TR_") and view["room"] == "order"


async def _a_clear_silences_at_once(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "clear") as (ears, line, _):
        line.join()
        sending = asyncio.create_task(send_live(line, tone_code(40)))
        assert await heard_all(ears, 12)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        line.clear()
        cleared = time.monotonic()
        await asyncio.sleep(0.5)
        assert ears.durations(12)[1:].min() >= 0.04
        assert max(at for at, _ in ears.spoken()) - cleared < 0.4  # what the SFU and the listener's jitter buffer hold
        line.play(2, RATE, 0, tone_code(5))
        line.end(2)
        assert await heard_all(ears, 4)


async def _a_cut_falls_into_the_pause(access: LiveKitAccess, voices: VoiceWorker) -> None:
    code = bytearray(tone_code(40))
    pause = range(round(2.22 * RATE), round(2.28 * RATE))
    code[2 * pause.start : 2 * pause.stop] = bytes(2 * len(pause))
    async with listening(access, voices, "cut") as (ears, line, _):
        line.join()
        line.play(1, RATE, 0, bytes(code))
        assert await heard_all(ears, 3)
        assert 0.2 < line.position().heard_s < 1.9
        cut = await line.cut(0.2, 2.5)
        assert cut is not None and cut.segment == 1 and not cut.whole
        assert 2.22 < cut.heard_s < 2.28
        assert 0.0 < cut.at - time.monotonic() < 2.3
        await asyncio.sleep(cut.at - time.monotonic() + 0.5)
        assert line.position().heard_s == pytest.approx(cut.heard_s, abs=0.001)
        assert {s for _, s in ears.spoken() if s < 40} == set(range(23))
        line.free()
        assert await heard_all(ears, 26)


async def _a_line_that_follows_says_each_sound_when_it_is_due(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "follow") as (ears, line, _):
        line.join()
        line.follow(0, 0.0, 0.0)
        code = bytearray(tone_code(30))
        code[2 * 16_000 : 2 * 20_800] = bytes(2 * 4_800)  # quiet from 1 s to 1.3 s
        line.play(1, RATE, 0, bytes(code))
        assert await line.wait_live(5)
        await asyncio.sleep(0.5)
        assert ears.spoken() == []
        due = time.monotonic() + 0.5
        line.follow(1, 0.0, due)
        await asyncio.sleep(0.7)
        line.follow(1, 0.0, due + 0.08)  # 80 ms later than was said: made up for in the quiet part
        assert await heard_all(ears, 26, settle_s=0)
        assert line.position().heard_s == pytest.approx(time.monotonic() - due - 0.08, abs=0.2)
        assert -0.05 < ears.spoken()[0][0] - due < 1.0
        assert line.view()["corrections"] >= 1


async def test_four_lines_of_one_worker(livekit_server: LiveKitAccess) -> None:
    async with worker() as voices:
        async with asyncio.TaskGroup() as group:
            group.create_task(_everything_is_heard_once_and_in_order(livekit_server, voices))
            group.create_task(_a_clear_silences_at_once(livekit_server, voices))
            group.create_task(_a_cut_falls_into_the_pause(livekit_server, voices))
            group.create_task(_a_line_that_follows_says_each_sound_when_it_is_due(livekit_server, voices))
        assert voices.lines == [] and voices.statistics.losses == 0


async def test_a_worker_that_is_killed_comes_back_and_goes_on_where_it_was(livekit_server: LiveKitAccess) -> None:
    async with worker() as voices, listening(livekit_server, voices, "killed") as (ears, line, _):
        line.join()
        line.play(1, RATE, 0, tone_code(25))
        line.end(1)
        assert await heard_all(ears, 8, settle_s=0)
        assert voices.pid is not None
        os.kill(voices.pid, signal.SIGKILL)
        assert await heard_all(ears, 24)
        durations = ears.durations(25)
        lost = durations < 0.05  # what was under way is lost or heard again, and listeners conceal
        assert lost.sum() <= 2 and np.all(durations[~lost] <= 0.4), durations
        assert voices.statistics.losses == 1 and voices.statistics.starts == 2
        assert ears.longest_gap() < 5


_ORCHESTRATOR = """
import asyncio
from orchestrator.metrics import Metrics
from orchestrator.voice.process import VoiceWorker

async def main():
    voices = VoiceWorker(Metrics())
    voices.open()
    await voices.wait_ready()
    line = voices.line({url!r}, lambda: {token!r})
    line.join()
    await line.wait_live(20)
    print(voices.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_worker_does_not_outlive_its_orchestrator(livekit_server: LiveKitAccess) -> None:
    ears = await Ears().join(livekit_server.url, join_token(livekit_server, "orphan", "viewer"))
    code = _ORCHESTRATOR.format(
        url=livekit_server.url, token=join_token(livekit_server, "orphan", "voice-1", "agent", publish=True)
    )
    orchestrator = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert orchestrator.stdout is not None
    worker_process = psutil.Process(int(await orchestrator.stdout.readline()))
    orchestrator.kill()
    await orchestrator.wait()
    assert await ears.until(5, lambda: ears.gone == ["voice-1"])
    assert await ears.until(8, lambda: not worker_process.is_running())
    await ears.leave()
