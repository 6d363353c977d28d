"""The voice worker with a real SFU and a real listener."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from livekit import api

from orchestrator.livekit_server import LiveKitAccess
from orchestrator.voice.line import VoiceLine
from orchestrator.voice.process import VoiceWorker
from tests.orchestrator.voice.tones import Ears, heard_all, tone_code
from tests.viewer import join_token

pytestmark = pytest.mark.livekit
ROOM = "studio"
RATE = 16_000


@asynccontextmanager
async def listening(access: LiveKitAccess) -> AsyncIterator[Ears]:
    async with api.LiveKitAPI(access.url, access.api_key, access.api_secret) as lk:
        await lk.room.create_room(api.CreateRoomRequest(name=ROOM, sync_streams=True))
    ears = Ears()
    await ears.join(access.url, join_token(access, ROOM, "viewer"))
    try:
        yield ears
    finally:
        await ears.leave()


@asynccontextmanager
async def worker() -> AsyncIterator[VoiceWorker]:
    voices = VoiceWorker()
    voices.open()
    try:
        async with asyncio.timeout(20):
            await voices.wait_ready()
        yield voices
    finally:
        await voices.aclose()


def token(access: LiveKitAccess) -> Callable[[], str]:
    return lambda: join_token(access, ROOM, "voice-1", "agent", publish=True)


async def send_live(line: VoiceLine, pcm: bytes, segment: int = 1) -> None:
    begun, step = time.monotonic(), 640
    for at in range(0, len(pcm) // 2, step):
        await asyncio.sleep(max(0.0, begun + (at + step) / RATE - time.monotonic()))
        line.play(segment, RATE, at, pcm[2 * at : 2 * (at + step)])
    line.end(segment)


async def test_everything_is_heard_once_and_in_order_and_the_line_leaves(livekit_server: LiveKitAccess) -> None:
    finished: list[int] = []
    async with listening(livekit_server) as ears, worker() as voices:
        line = voices.line(livekit_server.url, token(livekit_server), lambda r: finished.extend(r.finished))
        begun = time.monotonic()
        line.join()
        code = tone_code(30)
        line.play(1, RATE, 8000, code[16_000:])  # from 0.5 s on, faster than it is heard
        line.end(1)
        assert await heard_all(ears, 29)
        took = ears.spoken()[0][0] - begun
        assert took < 5
        durations = ears.durations(30)
        assert durations[:5].sum() <= 0.02 and np.all(np.abs(durations[6:] - 0.1) <= 0.041), durations
        symbols = [s for _, s in ears.spoken() if 5 <= s < 30]
        assert symbols == sorted(symbols) and ears.longest_gap() < 0.2
        assert ears.tracks == [("avatar-voice", "voice-1")]
        assert await ears.until(2, lambda: finished == [1])
        assert line.position().segment == 1 and line.position().heard_s == pytest.approx(3.0, abs=0.01)
        view = line.view()
        assert view["state"] == "live" and view["sid"].startswith("TR_") and view["room"] == ROOM
        line.leave()
        assert await ears.until(3, lambda: "voice-1" in ears.gone)
    assert voices.lines == []


async def test_a_voice_that_keeps_up_with_its_sender_is_cleared_at_once(livekit_server: LiveKitAccess) -> None:
    async with listening(livekit_server) as ears, worker() as voices:
        line = voices.line(livekit_server.url, token(livekit_server))
        line.join()
        code = tone_code(40)
        sending = asyncio.create_task(send_live(line, code))
        assert await heard_all(ears, 12)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        line.clear()
        cleared = time.monotonic()
        await asyncio.sleep(0.6)
        durations = ears.durations(40)[:12]
        assert np.all(np.abs(durations[1:] - 0.1) <= 0.061) and durations.sum() == pytest.approx(1.2, abs=0.1)
        assert max(at for at, _ in ears.spoken()) - cleared < 0.4  # what the SFU and the listener's jitter buffer hold
        line.play(2, RATE, 0, tone_code(5))
        line.end(2)
        assert await heard_all(ears, 4)
        line.leave()


async def test_a_cut_falls_into_the_pause_and_what_comes_after_it_is_not_heard(livekit_server: LiveKitAccess) -> None:
    code = bytearray(tone_code(40))
    pause = range(round(1.22 * RATE), round(1.28 * RATE))
    code[2 * pause.start : 2 * pause.stop] = bytes(2 * len(pause))
    async with listening(livekit_server) as ears, worker() as voices:
        line = voices.line(livekit_server.url, token(livekit_server))
        line.join()
        line.play(1, RATE, 0, bytes(code))
        assert await heard_all(ears, 3)
        assert 0.2 < line.position().heard_s < 1.0
        cut = await line.cut(0.2, 0.9)
        assert cut is not None and cut.segment == 1 and not cut.whole
        assert 1.22 < cut.heard_s < 1.28
        assert 0.2 < cut.at - time.monotonic() < 1.3
        await asyncio.sleep(cut.at - time.monotonic() + 0.5)
        assert line.position().heard_s == pytest.approx(cut.heard_s, abs=0.001)
        assert {s for _, s in ears.spoken() if s < 40} == set(range(13))
        line.free()
        assert await heard_all(ears, 16)
        line.leave()


async def test_a_worker_that_is_killed_comes_back_and_goes_on_where_it_was(livekit_server: LiveKitAccess) -> None:
    async with listening(livekit_server) as ears, worker() as voices:
        line = voices.line(livekit_server.url, token(livekit_server))
        line.join()
        line.play(1, RATE, 0, tone_code(40))
        line.end(1)
        assert await heard_all(ears, 8)
        assert voices.pid is not None
        os.kill(voices.pid, signal.SIGKILL)
        assert await heard_all(ears, 39)
        symbols = [s for _, s in ears.spoken() if 0 <= s < 40]
        durations = ears.durations(40)
        lost = durations < 0.05
        assert lost.sum() <= 2 and np.all(durations[~lost] <= 0.35), (
            durations
        )  # what was under way is lost or heard again; listeners conceal
        assert symbols == sorted(symbols) or max(np.diff(np.sort(symbols))) <= 3
        assert voices.statistics.losses == 1 and voices.statistics.starts == 2
        assert ears.longest_gap() < 5
        line.leave()


async def test_a_line_that_follows_says_each_sound_when_it_is_due(livekit_server: LiveKitAccess) -> None:
    async with listening(livekit_server) as ears, worker() as voices:
        line = voices.line(livekit_server.url, token(livekit_server))
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
        assert await heard_all(ears, 29)
        first = {s: at for at, s in reversed(ears.spoken())}
        assert 0.0 < first[0] - due < 0.25
        assert first[14] - first[8] == pytest.approx(0.68, abs=0.045)
        assert first[28] - first[14] == pytest.approx(1.4, abs=0.045)
        assert line.view()["corrections"] >= 1
        line.leave()
