"""What a session says of its microphone, by what the room holds: a fake room, no SFU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

from livekit import rtc

from musetalk_agent.microphone.microphone_input import MicrophoneInput
from tests.musetalk_agent.stand import stand


class Room:
    """Has what is read of an `rtc.Room`."""

    def __init__(self) -> None:
        self.remote_participants: dict[str, Any] = {}

    def on(self, name: str, handler: object) -> None: ...

    def has(self, **track: Any) -> None:
        """Anna is there, with a microphone of this kind, or with none."""
        known = {"source": rtc.TrackSource.SOURCE_MICROPHONE, "kind": rtc.TrackKind.KIND_AUDIO, "track": None}
        tracks = {"TR_a": SimpleNamespace(**known, **track)} if track else {}
        self.remote_participants["anna"] = SimpleNamespace(track_publications=tracks)


async def test_each_state_has_its_sentence(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        microphone, room = MicrophoneInput(made.pipeline, "anna", made.clock), Room()

        def found() -> tuple[str, str]:
            status = microphone.status()
            assert "'anna'" in status.message
            return status.state.value, status.message

        assert found() == ("unreachable", "The agent is not in the room by WebRTC, so it does not hear 'anna'.")
        microphone.on_room_joined(cast(rtc.Room, room))
        assert found()[0] == "waiting" and "no participant of this identity" in found()[1]
        room.has()
        assert found()[0] == "unpublished" and "publishes no microphone" in found()[1]
        room.has(muted=False)
        assert found()[0] == "connecting" and "nothing has come of it yet" in found()[1]
        assert microphone.status().delay_ms is None
        room.has(muted=True)
        assert found() == ("muted", "The microphone of 'anna' is muted.")
