"""Failover with a real SFU and a real RTMP server: what is said mid-fault is heard in full, over one receiver or the other."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.musetalk_agent.publishers.failing import Sfu, coarse, failing, sfu
from tests.musetalk_agent.publishers.spoken_code import heard_slots, spoken_code
from tests.servers.nginx_rtmp import NginxRtmp
from tests.servers.puller import Puller
from tests.viewer import RATE, Viewer, join_token

pytestmark = pytest.mark.livekit


@pytest.fixture
async def server() -> AsyncIterator[Sfu]:
    async with sfu() as made:
        yield made


@pytest.fixture
async def nginx() -> AsyncIterator[NginxRtmp]:
    made = NginxRtmp()
    try:
        await made.start()
        yield made
    finally:
        await made.aclose()


async def test_a_hanging_sfu_mid_sentence_and_back(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert made.publisher.name == "livekit" and not made.changes
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2 and viewer.video)
        speech = asyncio.create_task(made.speak(spoken_code(120, RATE)))
        await asyncio.sleep(3)
        server.signal(signal.SIGSTOP)
        cut = time.monotonic()
        await made.until(4, "rtmp")
        print("rtmp after", made.when("rtmp") - cut, made.ways())
        await asyncio.sleep(3.0)
        server.signal(signal.SIGCONT)
        freed = time.monotonic()
        await made.until(12, "livekit")
        print("back after", made.when("livekit") - freed, made.ways())
        await speech
        await asyncio.sleep(2)
        print([c.reason for _, c in made.changes], made.publisher.transport)
        print(made.session.status().statistics)
    puller.close()
    in_room = heard_slots(np.concatenate([b for _, b in viewer.sound]), RATE)
    at_rtmp = heard_slots(coarse(np.concatenate([b for _, b in puller.sound])), RATE)
    await viewer.leave()
    print("room", in_room)
    print("rtmp", at_rtmp)
    assert set(in_room) | set(at_rtmp) >= set(range(120))
