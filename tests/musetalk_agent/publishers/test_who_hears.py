"""Which sinks get the sound: every combination of who speaks, what runs beside, where RTMP leads and which way is in use."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from musetalk_agent.clock import VirtualClock
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers.failover.policy import TransportKind
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_agent.publishers.failover.transports import TransportOptions
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.stream.sink import StreamOptions, StreamSink

ADDRESS = RtmpAddress("rtmp", "host", 1935, "app", "key", ("127.0.0.1",))
BLOCK = np.ones(1920, np.int16)


class Ear(StreamSink):
    """A sink that is never started: what it was offered stays in its queue."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(StreamOptions("", 25, 64, 64, 1), clock, lambda: None)

    def _connect(self, attempt: int) -> None:  # type: ignore[override]  # it is never started
        raise AssertionError

    @property
    def hears(self) -> bool:
        return self._queue.seconds() > 0


@dataclass
class RoomEar:
    """The room's connection: its sound source is there only where the agent publishes the sound (see `LiveKitPublisher.open`)."""

    sound: bool
    heard: list[Pcm] = field(default_factory=list)

    async def capture(self, block: Pcm) -> None:
        if self.sound:
            self.heard.append(block)

    def clear_audio(self) -> int:
        return 0

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        pass


# speaker, where RTMP leads (None, "plain", "beside", "ingress"), the way in use → who hears it: room, whip, rtmp
TABLE = [
    ("agent", None, TransportKind.LIVEKIT, "room"),
    ("agent", None, TransportKind.WHIP, "whip"),
    ("agent", None, TransportKind.NONE, ""),
    ("agent", "plain", TransportKind.LIVEKIT, "room"),
    ("agent", "plain", TransportKind.WHIP, "whip"),
    ("agent", "plain", TransportKind.RTMP, "rtmp"),
    ("agent", "beside", TransportKind.LIVEKIT, "room rtmp"),
    ("agent", "beside", TransportKind.WHIP, "whip rtmp"),
    ("agent", "beside", TransportKind.RTMP, "rtmp"),
    ("agent", "ingress", TransportKind.LIVEKIT, "room"),
    ("agent", "ingress", TransportKind.WHIP, "whip"),
    ("agent", "ingress", TransportKind.RTMP, "rtmp"),
    # the orchestrator publishes the sound in the room: whatever leads there has a picture only
    ("orchestrator", None, TransportKind.LIVEKIT, ""),
    ("orchestrator", None, TransportKind.WHIP, ""),
    ("orchestrator", None, TransportKind.NONE, ""),
    ("orchestrator", "plain", TransportKind.LIVEKIT, ""),
    ("orchestrator", "plain", TransportKind.WHIP, ""),
    ("orchestrator", "plain", TransportKind.RTMP, "rtmp"),
    ("orchestrator", "beside", TransportKind.LIVEKIT, "rtmp"),
    ("orchestrator", "beside", TransportKind.WHIP, "rtmp"),
    ("orchestrator", "beside", TransportKind.RTMP, "rtmp"),
    ("orchestrator", "ingress", TransportKind.LIVEKIT, ""),
    ("orchestrator", "ingress", TransportKind.WHIP, ""),
    ("orchestrator", "ingress", TransportKind.RTMP, ""),
]


@pytest.mark.parametrize("mode", list(PublisherMode))
@pytest.mark.parametrize(("speaker", "target", "rung", "hears"), TABLE)
async def test_the_sound_goes_to_each_place_once(
    speaker: str, target: str | None, rung: TransportKind, hears: str, mode: PublisherMode
) -> None:
    clock = VirtualClock()
    sound = speaker == "agent"
    options = TransportOptions(
        LiveKitOptions("ws://x", "token", "room", 25, publishes_audio=sound),
        address=ADDRESS if target else None,
        ingress=target == "ingress",
        beside=target == "beside",
    )
    publisher = FailoverPublisher(options, mode, clock)
    whip, stream, room = Ear(clock), Ear(clock), RoomEar(sound)
    outlets = publisher._transports
    outlets.whip = whip if rung is TransportKind.WHIP else None
    outlets.stream = stream if target is not None else None  # it is opened in case also where it is not in use
    outlets.room = room if rung is TransportKind.LIVEKIT else None  # type: ignore[assignment]  # what is asked of it is there
    publisher._rung = rung
    publisher._flow.set()
    publisher._playout.held = False
    await publisher.push_audio(BLOCK)
    heard = {"room": bool(room.heard), "whip": whip.hears, "rtmp": stream.hears}
    assert " ".join(name for name, hearing in heard.items() if hearing) == hears
    publisher.clear_audio()
    assert not whip.hears and not stream.hears
