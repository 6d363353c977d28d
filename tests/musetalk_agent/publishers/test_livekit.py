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
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, DiagnosisCode, SessionState
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions, LiveKitPublisher
from musetalk_agent.session.session import Session
from musetalk_tools.livekit_server import LiveKitAccess
from tests.fakes.relay import relay
from tests.musetalk_agent.publishers.feed import picture
from tests.musetalk_agent.stand import bursts, tone
from tests.viewer import RATE, Viewer, join_token
from tests.waiting import until

pytestmark = pytest.mark.livekit
ROOM = "studio"
START = '{"type":"segment.start","segment":%d,"sample_rate":16000}'


@asynccontextmanager
async def on_air(
    access: LiveKitAccess, executor: ThreadPoolExecutor, token: str = "", url: str = ""
) -> AsyncIterator[Session]:
    """A session with the pattern engine, built but not started; stopped at the end. `url` leads to the server another way."""
    batcher = Batcher(PatternEngine())
    await batcher.start()
    bundle, clock = pattern_bundle(256, 256, 25), MonotonicClock()
    token = token or join_token(access, ROOM, "avatar", "agent", publish=True)
    publisher = LiveKitPublisher(LiveKitOptions(url or access.url, token, ROOM, 25), clock)
    request = AgentStartRequest(
        session_id="s1", room=ROOM, livekit_url=access.url, livekit_token=token, avatar=AvatarSource()
    )
    actor = batcher.engine.open(bundle)
    session = Session(
        request,
        bundle,
        "pattern",
        publisher,
        lambda outputs: Pipeline(publisher, batcher, actor, bundle, clock, executor, outputs),
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
        session.receiver.take(pcm[at : at + 640].tobytes())


async def test_both_tracks_idle_and_speech_in_step(livekit_server: LiveKitAccess, executor: ThreadPoolExecutor) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        assert {t.kind for t in session.publisher.state.tracks} == {"audio", "video"}
        await until(lambda: len(viewer.tracks) == 2 and viewer.video)
        assert sorted(viewer.tracks) == [("avatar-audio", "avatar"), ("avatar-video", "avatar")]
        assert viewer.video[0][2:] == (256, 256)
        who = viewer.room.remote_participants["avatar"]
        assert who.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        await until(lambda: session.diagnose().code is DiagnosisCode.NO_AUDIO)
        begun = time.monotonic()
        session.receiver.take(START % 1)
        sending = asyncio.create_task(send_live(session, bursts(4)))
        await until(lambda: who.attributes.get("avatar.state") == "speaking")
        await sending  # its last 0.8 s are silence, in which the avatar is idle again
        session.receiver.take('{"type":"segment.end","segment":1}')
        await until(lambda: len(session.events.after(0)) == 2)
        await until(lambda: who.attributes.get("avatar.state") == "idle")
        whites = viewer.whites(begun)
        nearest = [min(whites, key=lambda t: abs(t - sound)) - sound for sound in viewer.onsets(begun)]
        # bursts and flashes come once a second or so and in pairs; how exactly they meet is the bench's
        assert len([skew for skew in nearest if abs(skew) < 0.3]) >= 2
        await until(lambda: session.status().funnel[-1].count > 50)
        # a busy machine's engine was slow, and is so for some seconds more
        await until(lambda: session.diagnose().code is DiagnosisCode.OK)


async def test_video_that_nobody_subscribes_to_is_neither_drawn_nor_encoded_and_comes_back_for_who_does(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with on_air(livekit_server, executor) as session:
        await session.start()
        publisher = session.publisher
        assert isinstance(publisher, LiveKitPublisher)
        session.receiver.take(START % 1)
        session.receiver.take(tone(90).tobytes())
        await until(lambda: not publisher.state.watched)
        await until(lambda: session.pipeline.player.statistics.unwatched > 25)
        resting, drawn = publisher.reading, session.pipeline.player.statistics.spoken
        # the server answers heartbeats while it gets no frames, so that its loss would still be noticed
        await until(lambda: publisher.reading.packets_received > resting.packets_received + 20)
        assert publisher.reading.frames_encoded == resting.frames_encoded
        assert session.pipeline.player.statistics.spoken == drawn
        assert session.diagnose().code is DiagnosisCode.TRACK_NOT_SUBSCRIBED
        hearing = await Viewer(watches=False).join(livekit_server.url, join_token(livekit_server, ROOM, "hears"))
        try:
            await until(lambda: publisher.state.subscribed and hearing.heard(0.0))
            await until(lambda: not publisher.state.watched)
            await until(lambda: "no viewer subscribes to its video" in session.diagnose().message)
        finally:
            await hearing.leave()
        viewer = await Viewer().join(livekit_server.url, join_token(livekit_server, ROOM, "viewer"))
        try:
            await until(lambda: viewer.video)
            await until(lambda: viewer.video[-1][1] > 160)  # a mouth that is open, as in all of this tone
            await until(lambda: session.pipeline.player.statistics.spoken > drawn)
            # a busy machine's engine may be slow
            await until(lambda: session.diagnose().code is not DiagnosisCode.TRACK_NOT_SUBSCRIBED)
        finally:
            await viewer.leave()


async def test_clear_silences_the_room(livekit_server: LiveKitAccess, executor: ThreadPoolExecutor) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        await until(lambda: len(viewer.tracks) == 2)
        session.receiver.take(START % 1)
        session.receiver.take(tone(60).tobytes())
        await until(lambda: len(viewer.heard(0.0)) > 50)
        session.receiver.take('{"type":"clear"}')

        def rests() -> bool:  # the minute of sound is far from its end
            sound, pictures = (
                [block for _, block in viewer.sound[-40:]],
                [centre for _, centre, _, _ in viewer.video[-10:]],
            )
            return max(int(np.abs(block.astype(int)).max()) for block in sound) < 1500 and max(pictures) < 160

        await until(rests)
        assert sum(len(block) for _, block in viewer.sound) < 50 * RATE
        kinds = [e.event.type for e in session.events.after(0)]
        assert kinds == ["playback.started", "playback.finished", "cleared"]


async def test_a_full_reconnect_is_survived_without_a_second_publish(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with watching(livekit_server) as viewer, on_air(livekit_server, executor) as session:
        await session.start()
        await until(lambda: viewer.video)
        publisher = session.publisher
        assert isinstance(publisher, LiveKitPublisher)
        back = reconnects(publisher._room)
        await publisher._room.simulate_scenario(SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
        await until(lambda: back and not publisher.state.reconnecting)
        cut, pictures = time.monotonic(), len(viewer.video)
        await until(lambda: len(viewer.video) > pictures + 10)
        assert len(viewer.room.remote_participants["avatar"].track_publications) == 2
        session.receiver.take(START % 1)
        session.receiver.take(tone(0.5).tobytes())
        session.receiver.take('{"type":"segment.end","segment":1}')
        await until(lambda: viewer.heard(cut))
        assert session.state in (SessionState.SPEAKING, SessionState.READY)


async def settled(access: LiveKitAccess) -> None:
    """Waits until the server counts the avatar as active: all that a join says has been said."""

    async def active() -> bool:
        answer = await lk.room.list_participants(api.ListParticipantsRequest(room=ROOM))
        return [p.state for p in answer.participants if p.identity == "avatar"] == [api.ParticipantInfo.State.ACTIVE]

    async with api.LiveKitAPI(access.url, access.api_key, access.api_secret) as lk:
        await until(active)


async def remove(access: LiveKitAccess) -> None:
    await settled(access)
    async with api.LiveKitAPI(access.url, access.api_key, access.api_secret) as lk:
        await lk.room.remove_participant(api.RoomParticipantIdentity(room=ROOM, identity="avatar"))


def room_of(session: Session) -> rtc.Room:
    assert isinstance(session.publisher, LiveKitPublisher)
    return session.publisher._room


def reconnects(room: rtc.Room) -> list[None]:
    """Grows by one each time the SDK has come back to the room by itself."""
    seen: list[None] = []
    room.on("reconnected", lambda: seen.append(None))
    return seen


async def remove_for_good(access: LiveKitAccess, room: rtc.Room, gone: asyncio.Event) -> None:
    """Removes the avatar until it stays away: the server may lose its goodbye, see docs/explanation/livekit.md."""
    back = reconnects(room)
    while not gone.is_set():
        times = len(back)
        await remove(access)
        await until(lambda: gone.is_set() or len(back) > times)  # noqa: B023 - awaited in the same turn


async def test_being_removed_from_the_room_ends_the_session(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with on_air(livekit_server, executor) as session:
        await session.start()
        await remove_for_good(livekit_server, room_of(session), session.ended)
        assert session.state is SessionState.STOPPED and session.error is None


async def test_a_removal_whose_goodbye_is_lost_is_a_reconnect(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    async with relay(livekit_server.url) as way:
        async with on_air(livekit_server, executor, url=way.url.replace("http", "ws")) as session:
            await session.start()
            back = reconnects(room_of(session))
            old = {t.sid for t in session.publisher.state.tracks}
            way.deaf = True
            await remove(livekit_server)
            way.deaf = False
            way.cut()
            await until(lambda: back)
            state = session.publisher.state
            assert session.state is SessionState.READY and not state.reconnecting
            assert {t.kind for t in state.tracks} == {"audio", "video"} and not old & {t.sid for t in state.tracks}
            await remove_for_good(livekit_server, room_of(session), session.ended)
            assert session.state is SessionState.STOPPED and session.error is None


async def test_nothing_of_the_sdk_is_left_running_when_the_server_ended_the_connection_first(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = join_token(livekit_server, ROOM, "avatar", "agent", publish=True)
    publisher = LiveKitPublisher(LiveKitOptions(livekit_server.url, token, ROOM, 25), MonotonicClock())
    room, lost, left, last_event = publisher._room, asyncio.Event(), asyncio.Event(), asyncio.Event()
    disconnect, join = room.disconnect, room._room_queue.join

    async def note_left() -> None:
        await disconnect()
        left.set()

    async def held_up() -> None:
        await join()
        if lost.is_set():  # the room's last event waits behind this one
            await last_event.wait()

    monkeypatch.setattr(room, "disconnect", note_left)
    monkeypatch.setattr(room._room_queue, "join", held_up)
    await publisher.open(picture(90), lambda reason: lost.set())
    await remove_for_good(livekit_server, room, lost)
    closing = asyncio.create_task(publisher.aclose())
    await until(left.is_set)
    assert not closing.done()
    last_event.set()
    await closing
    assert room._task.done() and not room._task.cancelled()


async def test_a_bad_token_is_reported_and_leaves_nothing(
    livekit_server: LiveKitAccess, executor: ThreadPoolExecutor
) -> None:
    wrong = LiveKitAccess(livekit_server.url, livekit_server.api_key, "x" * 40)
    async with on_air(livekit_server, executor, join_token(wrong, ROOM, "avatar", "agent", publish=True)) as session:
        with pytest.raises(PublishFailed, match="LIVEKIT_URL"):
            await session.start()
        assert session.state is SessionState.FAILED
        assert session.error is not None and session.error["code"] == "livekit_unavailable"
