"""Failover with a real SFU and a real RTMP server: what is said mid-fault is heard in full, over one receiver or the other."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.errors import PublisherUnavailable, PublishFailed
from musetalk_agent.media import VideoFrame
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers.base import Lost
from musetalk_agent.publishers.livekit import LiveKitPublisher
from orchestrator.livekit_server import LiveKitAccess
from orchestrator.processes import free_port
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


def quiet(viewer: Viewer) -> bool:
    """Nothing was heard in the room for a while."""
    return time.monotonic() - max(viewer.heard(0.0), default=0.0) > 0.7


async def soon(happened: Callable[[], bool]) -> None:
    """Returns when it has; fails after 20 s."""
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110 - a thread tells it
            await asyncio.sleep(0.02)


async def seen_out(puller: Puller) -> None:
    """Waits until the stream that has ended has been seen to its end; the puller's thread ends with the server."""
    seen = -1
    while seen != len(puller.sound):
        seen = len(puller.sound)
        await asyncio.sleep(0.7)
    puller._stopping = True


async def test_a_hanging_sfu_mid_sentence_and_back(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert made.publisher.name == "livekit" and not made.changes
        assert {track.kind for track in made.session.status().tracks} == {"audio", "video"}
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2 and viewer.video)
        speech = asyncio.create_task(made.speak(spoken_code(100, RATE)))
        await asyncio.sleep(2)
        server.signal(signal.SIGSTOP)
        cut = time.monotonic()
        await made.until(4, "rtmp")
        assert made.when("rtmp") - cut < 3
        await asyncio.sleep(1)
        server.signal(signal.SIGCONT)
        freed = time.monotonic()
        await made.until(15, "livekit")
        assert made.when("livekit") - freed < 15
        await speech
        assert await viewer.until(10, lambda: "playback.finished" in made.kinds())
        assert await viewer.until(5, lambda: quiet(viewer))
        assert [change.reason for _, change in made.changes] == ["transport_silent", "healthy"]
        assert made.kinds().count("playback.started") == made.kinds().count("playback.finished") == 1
    await seen_out(puller)
    in_room = heard_slots(np.concatenate([b for _, b in viewer.sound]), RATE)
    at_rtmp = heard_slots(coarse(np.concatenate([b for _, b in puller.sound])), RATE)
    await viewer.leave()
    assert set(in_room) | set(at_rtmp) >= set(range(100))
    assert at_rtmp == sorted(set(at_rtmp)) and max(in_room) == 99


async def test_without_another_way_the_voice_waits_and_nothing_is_lost(
    server: Sfu, executor: ThreadPoolExecutor
) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    async with failing(server.access, executor) as made:
        await made.session.start()
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2 and viewer.video)
        speech = asyncio.create_task(made.speak(spoken_code(35, RATE)))
        await asyncio.sleep(2)
        server.signal(signal.SIGSTOP)
        await made.until(4, "none")
        await asyncio.sleep(1)
        server.signal(signal.SIGCONT)
        await made.until(10, "livekit")
        await speech
        assert await viewer.until(10, lambda: "playback.finished" in made.kinds())
        assert await viewer.until(5, lambda: quiet(viewer))
        assert made.ways() == ["none", "livekit"] and made.kinds().count("playback.started") == 1
    heard = heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE)
    await viewer.leave()
    assert set(heard) >= set(range(35))
    again = len(heard) - len(set(heard))
    assert again < 25, heard  # what was under way when the SFU hung is heard again, and no more


async def test_a_start_without_the_sfu_is_a_start_on_rtmp(nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    nowhere = LiveKitAccess(f"ws://127.0.0.1:{free_port()}", "key", "s" * 32)
    puller = Puller(nginx.url("avatar"))
    begun = time.monotonic()
    async with failing(nowhere, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert time.monotonic() - begun < 12  # 3 s on a machine that has time
        assert made.publisher.name == "rtmp" and made.ways() == ["rtmp"]
        await soon(lambda: bool(puller.sound))  # what is said before it has joined it does not hear
        made.say(spoken_code(10, RATE))
        await soon(lambda: "playback.finished" in made.kinds())
        status = made.session.status()
        assert (status.publisher, status.transport.rung) == ("rtmp", "rtmp")
        await asyncio.sleep(1)
    await seen_out(puller)
    assert set(heard_slots(coarse(puller.wave()[1]), RATE)) == set(range(10))


async def test_modes_move_the_session_and_back(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2)
        speech = asyncio.create_task(made.speak(spoken_code(40, RATE)))
        await asyncio.sleep(1)
        made.publisher.set_mode(PublisherMode.RTMP)
        await made.until(5, "rtmp")
        assert await viewer.until(5, lambda: viewer.gone == ["avatar"])
        await asyncio.sleep(1)
        made.publisher.set_mode(PublisherMode.WEBRTC)
        await made.until(8, "livekit")
        await speech
        assert await viewer.until(10, lambda: "playback.finished" in made.kinds())
        assert await viewer.until(5, lambda: quiet(viewer))
        assert made.ways() == ["rtmp", "livekit"]
    await seen_out(puller)
    in_room = heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE)
    at_rtmp = heard_slots(coarse(puller.wave()[1]), RATE)
    await viewer.leave()
    assert set(in_room) | set(at_rtmp) >= set(range(40))
    assert len(set(in_room) & set(at_rtmp)) <= 8  # the slots in which it changed


async def test_a_stream_beside_has_all_of_it(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar"), beside=True) as made:
        await made.session.start()
        for _ in range(200):
            if made.publisher.transport.beside == "live" and puller.pictures:
                break
            await asyncio.sleep(0.02)
        made.say(spoken_code(45, RATE))
        await asyncio.sleep(1)
        server.signal(signal.SIGSTOP)
        await made.until(5, "rtmp")
        server.signal(signal.SIGCONT)
        for _ in range(400):
            if "playback.finished" in made.kinds():
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
    await seen_out(puller)
    assert heard_slots(coarse(puller.wave()[1]), RATE) == list(range(45))


async def test_without_an_address_rtmp_is_refused(server: Sfu, executor: ThreadPoolExecutor) -> None:
    async with failing(server.access, executor) as made:
        await made.session.start()
        with pytest.raises(PublisherUnavailable, match="rtmp_url"):
            made.publisher.set_mode(PublisherMode.RTMP)
        assert made.publisher.name == "livekit"


async def test_an_sdk_that_fails_at_once_is_replaced_by_whip(
    server: Sfu, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(self: LiveKitPublisher, first: VideoFrame, lost: Lost) -> None:
        raise PublishFailed("the native library is broken")

    monkeypatch.setattr(LiveKitPublisher, "open", breaks)
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    async with failing(server.access, executor) as made:
        await made.session.start()
        assert made.publisher.name == "whip" and [c.reason for _, c in made.changes] == ["join_broke"]
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2 and viewer.video)
        made.say(spoken_code(15, RATE))
        assert await viewer.until(5, lambda: "playback.finished" in made.kinds())
        assert await viewer.until(5, lambda: quiet(viewer))
    await viewer.leave()
    assert heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE) == list(range(15))


async def test_a_token_that_is_refused_is_told_without_quoting_it(server: Sfu, executor: ThreadPoolExecutor) -> None:
    wrong = LiveKitAccess(server.access.url, server.access.api_key, "x" * 40)
    token = join_token(wrong, "studio", "avatar", "agent", publish=True)
    async with failing(server.access, executor, token=token) as made:
        with pytest.raises(PublishFailed, match="LIVEKIT_URL") as told:
            await made.session.start()
    assert "eyJ" not in str(told.value) and made.session.state == "failed"
