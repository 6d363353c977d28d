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

from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.metrics import Metrics
from orchestrator.voice.voice_worker import VoiceLine, VoiceWorker
from orchestrator.voice.worker_messages import LineReport
from tests.orchestrator.voice.tones import Ears, heard_all, once, tone_code
from tests.viewer import join_token
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.livekit
RATE = 16_000


@asynccontextmanager
async def worker() -> AsyncIterator[VoiceWorker]:
    voices = VoiceWorker(Metrics())
    voices.open()
    try:
        async with asyncio.timeout(NEVER_S):
            await voices.wait_ready()
        yield voices
    finally:
        await voices.aclose()


@asynccontextmanager
async def listening(
    access: LiveKitAccess, voices: VoiceWorker, room: str
) -> AsyncIterator[tuple[Ears, VoiceLine, list[LineReport]]]:
    """A line that has joined a room of its own, its listener, who hears all that is said from now on, and its reports."""
    ears, reports = Ears(), list[LineReport]()
    await ears.join(access.url, join_token(access, room, "viewer"))
    line = voices.line(access.url, lambda: join_token(access, room, "voice-1", "agent", publish=True), reports.append)
    try:
        line.join()
        assert await line.wait_live(NEVER_S)
        await until(lambda: ears.tracks)
        yield ears, line, reports
        line.leave()
        assert await ears.until(NEVER_S, lambda: "voice-1" in ears.gone)
    finally:
        line.leave()
        await ears.leave()


async def _everything_is_heard_once_and_in_order(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "order") as (ears, line, reports):
        line.play(1, RATE, 8000, tone_code(25)[16_000:])  # from 0.5 s on, faster than it is heard
        line.end(1)
        assert await heard_all(ears, 24)
        durations = ears.durations(25)
        assert durations[:5].sum() <= 0.04 and once(durations[6:]), durations
        symbols = [s for _, s in ears.spoken() if 5 <= s < 25]
        middles = [float(np.median(np.flatnonzero(np.array(symbols) == s))) for s in range(5, 25)]
        assert middles == sorted(middles)  # windows at an edge, or in what a jitter buffer made up, may be misread
        assert ears.tracks == [("avatar-voice", "voice-1")]
        assert await ears.until(NEVER_S, lambda: [n for r in reports for n in r.finished] == [1])
        assert line.position().segment == 1 and line.position().heard_s == pytest.approx(2.5, abs=0.01)
        view = line.view()
        assert view["state"] == "live" and view["track"].startswith("TR_") and view["room"] == "order"


async def _a_clear_silences_what_is_still_to_come(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "clear") as (ears, line, _):
        line.play(1, RATE, 0, tone_code(60))
        assert await heard_all(ears, 12, settle_s=0)
        line.clear()
        line.play(2, RATE, 0, tone_code(5))
        line.end(2)
        assert await heard_all(ears, 4)  # the second one's, after half a second or so
        symbols = [s for _, s in ears.spoken()]
        assert max(s for s in symbols if 0 <= s < 60) < 45, "most of what was cleared is never heard"
        assert symbols[-1] == 4, "and nothing of it after what came later"


async def _a_cut_falls_into_the_pause(access: LiveKitAccess, voices: VoiceWorker) -> None:
    code = bytearray(tone_code(60))
    pause = range(round(1.92 * RATE), round(1.98 * RATE))  # of the two seconds that the worker has at any time
    code[2 * pause.start : 2 * pause.stop] = bytes(2 * len(pause))
    async with listening(access, voices, "cut") as (ears, line, _):
        line.play(1, RATE, 0, bytes(code))
        assert await heard_all(ears, 3, settle_s=0)
        cut = await line.cut(0.2, 2.5)
        assert cut is not None and cut.segment == 1 and not cut.whole
        assert 1.92 < cut.heard_s < 1.98
        await until(lambda: line.position().heard_s >= cut.heard_s - 0.001)
        assert await heard_all(ears, 18)
        assert line.position().heard_s == pytest.approx(cut.heard_s, abs=0.001)
        assert {s for _, s in ears.spoken() if s < 60} <= set(range(20)), "nothing that lies after the pause"
        line.free()
        assert await heard_all(ears, 26, settle_s=0)


async def _a_line_that_follows_says_each_sound_when_it_is_due(access: LiveKitAccess, voices: VoiceWorker) -> None:
    async with listening(access, voices, "follow") as (ears, line, reports):
        line.follow(0, 0.0, 0.0)
        code = bytearray(tone_code(40))
        code[2 * 32_000 : 2 * 36_800] = bytes(2 * 4_800)  # quiet from 2 s to 2.3 s
        line.play(1, RATE, 0, bytes(code))
        seen = len(reports)
        await until(lambda: len(reports) > seen + 5)  # half a second of them, in which it did not know when
        assert ears.spoken() == []
        due = time.monotonic() + 0.5
        line.follow(1, 0.0, due)
        assert await heard_all(ears, 2, settle_s=0)
        line.follow(1, 0.0, due + 0.08)  # 80 ms later than was said: no sound is lost by it
        assert await heard_all(ears, 36, settle_s=0)
        assert ears.spoken()[0][0] >= due - 0.05


async def test_four_lines_of_one_worker(livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.voice.voice_worker._CUT_ANSWER_S", NEVER_S)
    async with worker() as voices:
        async with asyncio.TaskGroup() as group:
            group.create_task(_everything_is_heard_once_and_in_order(livekit_server, voices))
            group.create_task(_a_clear_silences_what_is_still_to_come(livekit_server, voices))
            group.create_task(_a_cut_falls_into_the_pause(livekit_server, voices))
            group.create_task(_a_line_that_follows_says_each_sound_when_it_is_due(livekit_server, voices))
        assert voices.lines == [] and voices.statistics.losses == 0


async def test_a_worker_that_is_killed_comes_back_and_goes_on_where_it_was(livekit_server: LiveKitAccess) -> None:
    async with worker() as voices, listening(livekit_server, voices, "killed") as (ears, line, _):
        line.play(1, RATE, 0, tone_code(25))
        line.end(1)
        assert await heard_all(ears, 8, settle_s=0)
        assert voices.pid is not None
        os.kill(voices.pid, signal.SIGKILL)
        assert await heard_all(ears, 24)
        durations = ears.durations(25)
        assert (durations < 0.02).sum() <= 5 and np.median(durations) <= 0.17, "but for what was under way it goes on"
        assert voices.statistics.losses == 1 and voices.statistics.starts == 2


_ORCHESTRATOR = """
import asyncio
from orchestrator.metrics import Metrics
from orchestrator.voice.voice_worker import VoiceWorker

async def main():
    voices = VoiceWorker(Metrics())
    voices.open()
    await voices.wait_ready()
    line = voices.line({url!r}, lambda: {token!r})
    line.join()
    await line.wait_live(60)
    print(voices.pid, flush=True)
    await asyncio.Event().wait()

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
    assert await ears.until(NEVER_S, lambda: ears.gone == ["voice-1"])
    assert await ears.until(NEVER_S, lambda: not worker_process.is_running())
    await ears.leave()
