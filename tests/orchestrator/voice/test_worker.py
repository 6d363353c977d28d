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
