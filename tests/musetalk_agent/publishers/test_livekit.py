"""The LiveKit publisher and a whole session in a real room, seen by a real subscriber."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest
from livekit import api, rtc
from livekit.rtc._proto.room_pb2 import SimulateScenarioKind

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import PublishFailed
from musetalk_agent.pipeline import Pipeline
from musetalk_agent.protocol.diagnosis import DiagnosisCode
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, SessionState
from musetalk_agent.publishers.livekit import LiveKitOptions, LiveKitPublisher
from musetalk_agent.session import Session
from orchestrator.livekit_server import LiveKitAccess
from tests.musetalk_agent.stand import bursts, tone
from tests.viewer import RATE, Viewer, join_token

pytestmark = pytest.mark.livekit
ROOM = "studio"
START = '{"type":"segment.start","segment":%d,"sample_rate":16000}'


@asynccontextmanager
async def on_air(access: LiveKitAccess, executor: ThreadPoolExecutor, token: str = "") -> AsyncIterator[Session]:
    """A session with the pattern engine, built but not started; stopped at the end."""
    batcher = Batcher(PatternEngine())
    await batcher.start()
    bundle, clock = pattern_bundle(256, 256, 25), MonotonicClock()
    token = token or join_token(access, ROOM, "avatar", "agent", publish=True)
    publisher = LiveKitPublisher(LiveKitOptions(access.url, token, ROOM, 25), clock)
    request = AgentStartRequest(
        session_id="s1", room=ROOM, livekit_url=access.url, livekit_token=token, avatar=AvatarSource()
    )
    actor = batcher.engine.open(bundle)
    session = Session(
        request,
        bundle,
        "pattern",
        publisher,
        lambda emit, speaking: Pipeline(publisher, batcher, actor, bundle, clock, executor, emit, speaking),
        actor.close,
    )
    try:
        yield session
    finally:
        await session.stop()
        await batcher.aclose()


@asynccontextmanager
async def watching(access: LiveKitAccess) -> AsyncIterator[Viewer]:
    """A viewer in a room that synchronises its streams."""
    async with api.LiveKitAPI(access.url, access.api_key, access.api_secret) as lk:
        await lk.room.create_room(api.CreateRoomRequest(name=ROOM, sync_streams=True))
    viewer = await Viewer().join(access.url, join_token(access, ROOM, "viewer"))
    try:
        yield viewer
    finally:
        await viewer.leave()


async def send_live(session: Session, pcm: np.ndarray) -> None:
    begun = time.monotonic()
    for at in range(0, len(pcm), 640):
        await asyncio.sleep(max(0.0, begun + (at + 640) / RATE - time.monotonic()))
        session.take(pcm[at : at + 640].tobytes())


async def test_both_tracks_idle_and_speech_in_step(livekit_server: LiveKitAccess, executor: ThreadPoolExecutor) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        assert {t.kind for t in session.publisher.state.tracks} == {"audio", "video"}
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2 and viewer.video)
        assert sorted(viewer.tracks) == [("avatar-audio", "avatar"), ("avatar-video", "avatar")]
        assert viewer.video[0][2:] == (256, 256)
        who = viewer.room.remote_participants["avatar"]
        assert who.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        assert await viewer.until(3, lambda: session.diagnose().code is DiagnosisCode.NO_AUDIO)
        begun = time.monotonic()
        session.take(START % 1)
        sending = asyncio.create_task(send_live(session, bursts(4)))
        assert await viewer.until(5, lambda: who.attributes.get("avatar.state") == "speaking")
        await sending  # its last 0.8 s are silence, in which the avatar is idle again
        session.take('{"type":"segment.end","segment":1}')
        assert await viewer.until(3, lambda: len(session.outbox.after(0)) == 2)
        assert await viewer.until(3, lambda: who.attributes.get("avatar.state") == "idle")
        whites = viewer.whites(begun)
        nearest = [min(whites, key=lambda t: abs(t - sound)) - sound for sound in viewer.onsets(begun)]
        skews = [s for s in nearest if abs(s) < 0.3]  # a loaded machine's jitter buffer may split a burst in two
        assert len(skews) >= 4
        assert abs(float(np.median(skews))) < 0.1  # the bar is the bench's; here all shares one event loop and machine
        assert await viewer.until(4, lambda: session.status().funnel[-1].count > 50)
        assert session.diagnose().code is DiagnosisCode.OK


async def test_clear_silences_the_room(livekit_server: LiveKitAccess, executor: ThreadPoolExecutor) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        assert await viewer.until(5, lambda: len(viewer.tracks) == 2)
        session.take(START % 1)
        session.take(tone(4).tobytes())
        begun = time.monotonic()
        assert await viewer.until(3, lambda: len(viewer.heard(begun)) > 50)
        asked = time.monotonic()
        session.take('{"type":"clear"}')
        await asyncio.sleep(1.0)
        assert max([*viewer.heard(asked), asked]) - asked < 0.4
        assert max([at for at, centre, _, _ in viewer.video if centre > 160]) - asked < 0.4
        kinds = [e.event.type for e in session.outbox.after(0)]
        assert kinds == ["playback.started", "playback.finished", "cleared"]


async def test_a_full_reconnect_is_survived_without_a_second_publish(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        assert await viewer.until(5, lambda: viewer.video)
        publisher = session.publisher
        assert isinstance(publisher, LiveKitPublisher)
        await publisher._room.simulate_scenario(SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
        await asyncio.sleep(0.5)
        cut = time.monotonic()
        assert await viewer.until(8, lambda: viewer.video[-1][0] > cut + 0.5)
        assert await viewer.until(5, lambda: not publisher.state.reconnecting)
        assert len(viewer.room.remote_participants["avatar"].track_publications) == 2
        session.take(START % 1)
        session.take(tone(0.5).tobytes())
        session.take('{"type":"segment.end","segment":1}')
        assert await viewer.until(3, lambda: viewer.heard(cut))
        assert session.state in (SessionState.SPEAKING, SessionState.READY)


async def test_being_removed_from_the_room_ends_the_session(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with on_air(livekit_server, executor) as session:
        await session.start()
        async with api.LiveKitAPI(livekit_server.url, livekit_server.api_key, livekit_server.api_secret) as lk:
            await lk.room.remove_participant(api.RoomParticipantIdentity(room=ROOM, identity="avatar"))
        async with asyncio.timeout(5):
            await session.ended.wait()
        assert session.state is SessionState.STOPPED and session.error is None


async def test_a_bad_token_is_told_and_leaves_nothing(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    wrong = LiveKitAccess(livekit_server.url, livekit_server.api_key, "x" * 40)
    async with on_air(livekit_server, executor, join_token(wrong, ROOM, "avatar", "agent", publish=True)) as session:
        with pytest.raises(PublishFailed, match="LIVEKIT_URL"):
            await session.start()
        assert session.state is SessionState.FAILED
        assert session.error is not None and session.error["code"] == "livekit_unavailable"
