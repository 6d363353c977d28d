"""A session in a real room that says what a participant's microphone says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from livekit import rtc
from livekit.rtc._proto.room_pb2 import SimulateScenarioKind

from musetalk_agent.microphone import microphone_input
from musetalk_agent.microphone.microphone_input import MicrophoneInput
from musetalk_agent.protocol.http import DiagnosisCode, MicrophoneState
from musetalk_agent.protocol.messages import WarningEvent
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_agent.session.session import Session
from musetalk_tools.livekit_server import LiveKitAccess
from tests.musetalk_agent.microphone.speaker import Speaker, pitch, until_heard
from tests.musetalk_agent.session_in_room import session_in_room
from tests.viewer import Viewer, join_token
from tests.waiting import until

pytestmark = pytest.mark.livekit
ROOM, AVATAR, ANNA = "studio", "avatar-1", "anna"


@asynccontextmanager
async def listening(access: LiveKitAccess) -> AsyncIterator[Viewer]:
    viewer = await Viewer().join(access.url, join_token(access, ROOM, "viewer"))
    try:
        yield viewer
    finally:
        await viewer.leave()


async def joined(access: LiveKitAccess, identity: str = ANNA) -> Speaker:
    return await Speaker().join(access.url, join_token(access, ROOM, identity, publish=True))


def state(session: Session) -> MicrophoneState:
    microphone = session.status().microphone
    assert microphone is not None
    return microphone.state


@pytest.mark.network
async def test_a_microphone_is_said_however_it_comes_and_goes(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    anna, stranger = Speaker(), await joined(livekit_server, "somebody")
    try:
        await stranger.publish(note=3000)  # a microphone that is not Anna's
        async with (
            session_in_room(livekit_server, tmp_path, room=ROOM, identity=AVATAR, microphone_of=ANNA) as session,
            listening(livekit_server) as viewer,
        ):
            assert state(session) is MicrophoneState.WAITING
            diagnosis = session.status().diagnosis
            assert diagnosis.code is DiagnosisCode.NO_AUDIO and "Waiting for 'anna'" in diagnosis.message

            await anna.join(livekit_server.url, join_token(livekit_server, ROOM, ANNA, publish=True))
            await until(lambda: state(session) is MicrophoneState.UNPUBLISHED)
            await anna.publish(rtc.TrackSource.SOURCE_SCREENSHARE_AUDIO, note=2000)  # not her microphone
            microphone = await anna.publish()
            anna.note = 500
            await until_heard(viewer, AVATAR, 500)
            assert state(session) is MicrophoneState.LIVE and session.status().speaker_present
            await until(lambda: session.state == "speaking")

            microphone.mute()
            await until(lambda: state(session) is MicrophoneState.MUTED)
            await until_heard(viewer, AVATAR, 0)
            await until(lambda: session.state == "ready")
            anna.note = 700
            microphone.unmute()
            await until_heard(viewer, AVATAR, 700)

            await anna.unpublish()
            await until(lambda: state(session) is MicrophoneState.UNPUBLISHED and pitch(viewer, AVATAR) == 0)
            anna.note = 900
            await anna.publish()
            await until_heard(viewer, AVATAR, 900)

            await anna.leave()
            await until(lambda: state(session) is MicrophoneState.WAITING and not session.status().speaker_present)
            await until_heard(viewer, AVATAR, 0)
            again = await joined(livekit_server)
            try:
                again.note = 1100
                await again.publish()
                await until_heard(viewer, AVATAR, 1100)
                assert session.state == "speaking" and session.error is None
            finally:
                await again.leave()
    finally:
        await anna.leave()
        await stranger.leave()


async def test_a_microphone_that_was_there_before_is_heard_after_reconnects_and_an_interrupt(
    livekit_server: LiveKitAccess, tmp_path: Path
) -> None:
    anna = await joined(livekit_server)
    try:
        await anna.publish()
        anna.note = 500
        async with (
            session_in_room(livekit_server, tmp_path, room=ROOM, identity=AVATAR, microphone_of=ANNA) as session,
            listening(livekit_server) as viewer,
        ):
            await until_heard(viewer, AVATAR, 500)
            publisher = session.publisher
            assert isinstance(publisher, FailoverPublisher) and publisher._transports.room is not None
            await publisher._transports.room._room.simulate_scenario(SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
            anna.note = 700
            await until_heard(viewer, AVATAR, 700)
            segments = session.status().playback.segments
            session.pipeline.clear()
            await until(lambda: session.status().playback.segments == segments + 1)
            anna.note = 900
            await until_heard(viewer, AVATAR, 900)
            anna.note = 0  # its microphone stays open
            await until(lambda: session.state == "ready")
            assert state(session) is MicrophoneState.LIVE
    finally:
        await anna.leave()


async def test_only_those_who_may_hear_the_microphone_itself_hear_it(
    livekit_server: LiveKitAccess, tmp_path: Path
) -> None:
    anna = await joined(livekit_server)
    anna.room.local_participant.set_track_subscription_permissions(
        allow_all_participants=False,
        participant_permissions=[rtc.ParticipantTrackPermission(participant_identity=AVATAR, allow_all=True)],
    )
    try:
        async with (
            session_in_room(livekit_server, tmp_path, room=ROOM, identity=AVATAR, microphone_of=ANNA),
            listening(livekit_server) as viewer,
        ):
            await anna.publish()
            anna.note = 500
            await until_heard(viewer, AVATAR, 500)
            assert {identity for _, identity in viewer.tracks} == {AVATAR}
            assert pitch(viewer, ANNA) == 0
    finally:
        await anna.leave()


async def test_a_microphone_that_does_not_come_is_reported_once(
    livekit_server: LiveKitAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microphone_input, "MISSED_S", 0.2)
    looks, report = 0, MicrophoneInput._report

    def looked(self: MicrophoneInput) -> None:
        nonlocal looks
        report(self)
        looks += 1

    monkeypatch.setattr(MicrophoneInput, "_report", looked)
    async with session_in_room(livekit_server, tmp_path, room=ROOM, identity=AVATAR, microphone_of=ANNA) as session:

        def warnings() -> list[WarningEvent]:
            return [e.event for e in session.events.after(0) if isinstance(e.event, WarningEvent)]

        await until(warnings)
        before = looks
        await until(lambda: looks >= before + 2)
        assert [w.code for w in warnings()] == ["microphone_missing"]
        assert "Waiting for 'anna'" in warnings()[0].message
