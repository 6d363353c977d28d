"""Failover with a real SFU and a real RTMP server: what is said mid-fault is heard in full, over one receiver or the other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.errors import PublisherUnavailable, PublishFailed
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers.base import Lost
from musetalk_agent.publishers.livekit.publisher import LiveKitPublisher
from musetalk_tools.livekit_server import LiveKitAccess
from musetalk_tools.processes import free_port
from tests.musetalk_agent.publishers.failing import Sfu, coarse, failing, sfu
from tests.musetalk_agent.publishers.spoken_code import SLOT_S, heard_slots, spoken_code
from tests.servers.nginx_rtmp import NginxRtmp
from tests.servers.puller import Puller
from tests.viewer import RATE, Viewer, join_token
from tests.waiting import until

pytestmark = pytest.mark.livekit
SLOT = round(SLOT_S * RATE)


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


async def has_heard(viewer: Viewer, blocks: int = 100) -> None:
    """Returns when the viewer has heard so much speech, in blocks of 10 ms."""
    await until(lambda: len(viewer.heard(0.0)) >= blocks)


async def heard_out(viewer: Viewer, last: int) -> None:
    """Returns when the viewer has heard that slot, the last one, and what may still come of it has had its time."""
    await until(lambda: viewer.sound and last in heard_slots(np.concatenate([b for _, b in viewer.sound[-100:]]), RATE))
    blocks = len(viewer.sound)
    await until(lambda: len(viewer.sound) >= blocks + 30)  # silence is heard too: 0.3 s of it


async def more(puller: Puller) -> None:
    """Returns when the puller has got another second of sound."""
    blocks = len(puller.sound)
    await until(lambda: len(puller.sound) >= blocks + 40)


async def seen_out(puller: Puller) -> None:
    """Waits until the stream that has ended has been seen to its end, and ends the puller."""
    await asyncio.to_thread(puller.close)


async def test_a_hanging_sfu_mid_sentence_and_back(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert made.publisher.name == "livekit" and not made.changes
        assert {track.kind for track in made.session.status().tracks} == {"audio", "video"}
        await until(lambda: len(viewer.tracks) == 2 and viewer.video)
        said, rest = np.split(spoken_code(50, RATE), [40 * SLOT])
        speech = asyncio.create_task(made.speak(said, ends=False))
        await has_heard(viewer)
        server.signal(signal.SIGSTOP)
        await made.until("rtmp")
        await more(puller)
        server.signal(signal.SIGCONT)
        await made.until("livekit")
        await speech
        await made.speak(rest, begins=False)  # said in the room, however long the way back took
        await until(lambda: "playback.finished" in made.kinds())
        await heard_out(viewer, 49)
        assert [change.reason for _, change in made.changes] == ["transport_silent", "healthy"]
        assert made.kinds().count("playback.started") == made.kinds().count("playback.finished") == 1
    await seen_out(puller)
    in_room = heard_slots(np.concatenate([b for _, b in viewer.sound]), RATE)
    at_rtmp = heard_slots(coarse(np.concatenate([b for _, b in puller.sound])), RATE)
    await viewer.leave()
    assert set(in_room) | set(at_rtmp) >= set(range(50))
    assert at_rtmp == sorted(set(at_rtmp)) and max(in_room) == 49


async def test_without_another_way_the_voice_waits_and_nothing_is_lost(
    server: Sfu, executor: ThreadPoolExecutor
) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    async with failing(server.access, executor) as made:
        await made.session.start()
        await until(lambda: len(viewer.tracks) == 2 and viewer.video)
        speech = asyncio.create_task(made.speak(spoken_code(18, RATE)))
        await has_heard(viewer)
        server.signal(signal.SIGSTOP)
        await made.until("none")
        await speech  # all of it has been sent meanwhile
        server.signal(signal.SIGCONT)
        await made.until("livekit")
        await until(lambda: "playback.finished" in made.kinds())
        await heard_out(viewer, 17)
        assert made.ways() == ["none", "livekit"] and made.kinds().count("playback.started") == 1
    heard = heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE)
    await viewer.leave()
    assert set(heard) >= set(range(18))
    again = len(heard) - len(set(heard))
    assert again < 13, heard  # what was under way when the SFU hung is heard again, and no more


async def test_a_start_without_the_sfu_is_a_start_on_rtmp(nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    nowhere = LiveKitAccess(f"ws://127.0.0.1:{free_port()}", "key", "s" * 32)
    puller = Puller(nginx.url("avatar"))
    async with failing(nowhere, executor, nginx.url("avatar")) as made:
        await made.session.start()
        assert made.publisher.name == "rtmp" and made.ways() == ["rtmp"]
        await until(lambda: bool(puller.sound))  # what is said before it has joined it does not hear
        made.say(spoken_code(5, RATE))
        await until(lambda: "playback.finished" in made.kinds())
        status = made.session.status()
        assert (status.publisher, status.transport.rung) == ("rtmp", "rtmp")
    await seen_out(puller)
    assert set(heard_slots(coarse(puller.wave()[1]), RATE)) == set(range(5))


async def test_modes_move_the_session_and_back(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    viewer = await Viewer().join(server.access.url, join_token(server.access, "studio", "viewer"))
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar")) as made:
        await made.session.start()
        await until(lambda: len(viewer.tracks) == 2)
        first, said, last = np.split(spoken_code(30, RATE), [15 * SLOT, 25 * SLOT])
        speech = asyncio.create_task(made.speak(first, ends=False))
        await has_heard(viewer, 50)
        made.publisher.set_mode(PublisherMode.RTMP)
        await made.until("rtmp")
        await until(lambda: viewer.gone == ["avatar"])
        await speech
        await made.speak(said, begins=False, ends=False)
        await more(puller)
        made.publisher.set_mode(PublisherMode.WEBRTC)
        await made.until("livekit")
        await made.speak(last, begins=False)
        await until(lambda: "playback.finished" in made.kinds())
        await heard_out(viewer, 29)
        assert made.ways() == ["rtmp", "livekit"]
    await seen_out(puller)
    in_room = heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE)
    at_rtmp = heard_slots(coarse(puller.wave()[1]), RATE)
    await viewer.leave()
    assert set(in_room) | set(at_rtmp) >= set(range(30)) and {0, 29} <= set(in_room) and 24 in at_rtmp
    assert len(set(in_room) & set(at_rtmp)) <= 5  # the slots in which it changed


async def test_a_stream_beside_has_all_of_it(server: Sfu, nginx: NginxRtmp, executor: ThreadPoolExecutor) -> None:
    puller = Puller(nginx.url("avatar"))
    async with failing(server.access, executor, nginx.url("avatar"), beside=True) as made:
        await made.session.start()
        await until(lambda: made.publisher.transport.beside == "live" and puller.pictures)
        made.say(spoken_code(23, RATE))
        await more(puller)
        server.signal(signal.SIGSTOP)
        await made.until("rtmp")
        server.signal(signal.SIGCONT)
        await until(lambda: "playback.finished" in made.kinds())
    await seen_out(puller)
    assert heard_slots(coarse(puller.wave()[1]), RATE) == list(range(23))


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
        await until(lambda: len(viewer.tracks) == 2 and viewer.video)
        made.say(spoken_code(8, RATE))
        await until(lambda: "playback.finished" in made.kinds())
        await heard_out(viewer, 7)
    await viewer.leave()
    assert heard_slots(np.concatenate([block for _, block in viewer.sound]), RATE) == list(range(8))


async def test_a_token_that_is_refused_is_reported_without_quoting_it(
    server: Sfu, executor: ThreadPoolExecutor
) -> None:
    wrong = LiveKitAccess(server.access.url, server.access.api_key, "x" * 40)
    token = join_token(wrong, "studio", "avatar", "agent", publish=True)
    async with failing(server.access, executor, token=token) as made:
        with pytest.raises(PublishFailed, match="LIVEKIT_URL") as reported:
            await made.session.start()
    assert "eyJ" not in str(reported.value) and made.session.state == "failed"
