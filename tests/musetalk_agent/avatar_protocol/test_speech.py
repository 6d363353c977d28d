"""A session in a real room that hears an agent: here one that speaks the protocol by hand, faults included."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.rtc._proto.room_pb2 import SimulateScenarioKind

from musetalk_agent.avatar_protocol import core
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_tools.livekit_server import LiveKitAccess
from tests.musetalk_agent.session_in_room import session_in_room
from tests.viewer import join_token
from tests.waiting import until

pytestmark = pytest.mark.livekit
ROOM, AVATAR, SENDER = "studio", "avatar-1", "agent-1"
RATE = 24_000


@dataclass
class ByHand:
    """What an agent does, and the calls it receives: (method, payload)."""

    room: rtc.Room = field(default_factory=rtc.Room)
    reported: list[tuple[str, str]] = field(default_factory=list)

    async def join(self, access: LiveKitAccess, identity: str = SENDER) -> ByHand:
        await self.room.connect(access.url, join_token(access, ROOM, identity, "agent", publish=True))
        for method in (core.STARTED_METHOD, core.FINISHED_METHOD):
            self.room.local_participant.register_rpc_method(method, self._on_call)
        return self

    def _on_call(self, call: rtc.RpcInvocationData) -> str:
        self.reported.append((call.method, call.payload))
        return "ok"

    async def begin(self) -> rtc.ByteStreamWriter:
        return await self.room.local_participant.stream_bytes(
            name="AUDIO_x",
            topic=core.AUDIO_TOPIC,
            destination_identities=[AVATAR],
            attributes={"sample_rate": str(RATE), "num_channels": "1"},
        )

    async def say(self, seconds: float) -> None:
        writer = await self.begin()
        await writer.write(tone(seconds))
        await writer.aclose()

    async def clear(self) -> str:
        return await self.room.local_participant.perform_rpc(
            destination_identity=AVATAR, method=core.CLEAR_METHOD, payload=""
        )

    @property
    def finished(self) -> list[tuple[float, bool]]:
        events = [json.loads(payload) for method, payload in self.reported if method == core.FINISHED_METHOD]
        assert all(set(event) == {"playback_position", "interrupted"} for event in events)
        return [(event["playback_position"], event["interrupted"]) for event in events]

    async def until_finished(self, count: int) -> list[tuple[float, bool]]:
        await until(lambda: len(self.finished) >= count)
        return self.finished


def tone(seconds: float) -> bytes:
    return (np.sin(np.arange(round(seconds * RATE)) * 0.2) * 8000).astype("<i2").tobytes()


async def test_speech_comes_in_and_is_acknowledged_once(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    agent = await ByHand().join(livekit_server)
    stranger = await ByHand().join(livekit_server, "somebody")
    try:
        async with session_in_room(
            livekit_server, tmp_path, room=ROOM, identity=AVATAR, livekit_agent=SENDER
        ) as session:
            await agent.say(0.5)
            assert await agent.until_finished(1) == [(0.5, False)]
            assert [method for method, _ in agent.reported] == [core.STARTED_METHOD, core.FINISHED_METHOD]

            await stranger.say(0.5)
            assert await stranger.clear() == "reject"

            await agent.say(20)  # far more than was heard when it is interrupted
            await agent.say(5)
            await until(lambda: len(agent.reported) >= 3 and session.status().playback.position_s > 0.1)
            assert await agent.clear() == "ok"
            first, second = (await agent.until_finished(3))[1:]
            assert first[1] is second[1] is True and 0.1 < first[0] < 20 and second[0] == 0.0

            open_end = await agent.begin()
            await open_end.write(tone(0.3) + b"\1")  # a trailer that does not come, and half a sample
            await agent.say(0.4)
            assert (await agent.until_finished(5))[3:] == [(0.3, False), (0.4, False)]
            await open_end.aclose()

            assert stranger.reported == [] and len(agent.finished) == 5
            status = session.status()
            assert status.playback.segments == 5 and status.speaker_present is True and status.last_audio_at
            await agent.room.disconnect()
            await until(lambda: not session.status().speaker_present)
    finally:
        await agent.room.disconnect()
        await stranger.room.disconnect()


async def test_an_avatar_that_had_to_reconnect_still_has_the_speech(
    livekit_server: LiveKitAccess, tmp_path: Path
) -> None:
    agent = await ByHand().join(livekit_server)
    try:
        async with session_in_room(
            livekit_server, tmp_path, room=ROOM, identity=AVATAR, livekit_agent=SENDER
        ) as session:
            await agent.say(5)
            await until(lambda: agent.reported)
            # all of it has come: a chunk on its way when the connection goes is the SDK's to lose
            await until(lambda: {s.stage: s.count for s in session.status().funnel}["samples"] == 5 * RATE)
            publisher = session.publisher
            assert isinstance(publisher, FailoverPublisher) and publisher._transports.room is not None
            await publisher._transports.room._room.simulate_scenario(SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
            assert await agent.until_finished(1) == [(5.0, False)]
            assert [method for method, _ in agent.reported] == [*2 * [core.STARTED_METHOD], core.FINISHED_METHOD]
    finally:
        await agent.room.disconnect()


async def test_errors_of_the_sdk_that_no_one_expected_cost_a_call_or_a_stream_and_not_the_session(
    livekit_server: LiveKitAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    perform = rtc.LocalParticipant.perform_rpc
    read = rtc.ByteStreamReader.__anext__
    chunks = 0

    async def breaks_once(self: rtc.LocalParticipant, *, method: str, **call: Any) -> str:
        if call["destination_identity"] == SENDER:
            calls.append(method)
            if len(calls) == 1:
                raise Exception("the library is in a bad mood")
        return await perform(self, method=method, **call)

    async def breaks_at_its_second_chunk(self: rtc.ByteStreamReader) -> bytes:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise Exception("the library is in a bad mood")
        return await read(self)

    monkeypatch.setattr(rtc.LocalParticipant, "perform_rpc", breaks_once)
    monkeypatch.setattr(rtc.ByteStreamReader, "__anext__", breaks_at_its_second_chunk)
    agent = await ByHand().join(livekit_server)
    try:
        async with session_in_room(
            livekit_server, tmp_path, room=ROOM, identity=AVATAR, livekit_agent=SENDER
        ) as session:
            await agent.say(3)  # the stream breaks after its first chunk: what came of it is said
            (broken,) = await agent.until_finished(1)
            assert 0 < broken[0] < 3 and not broken[1]
            await agent.say(0.5)
            assert (await agent.until_finished(2))[1] == (0.5, False)
            assert calls[0] == core.STARTED_METHOD and len(agent.reported) == 3  # the first call was lost
            assert session.state in ("ready", "speaking") and session.error is None
    finally:
        await agent.room.disconnect()
