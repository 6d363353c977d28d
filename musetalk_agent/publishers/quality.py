"""Watches how the way out keeps up, sets the quality accordingly, and says what leaves."""

from __future__ import annotations

from musetalk_agent.media import VideoFrame
from musetalk_agent.metrics import ADAPTATION_STEP
from musetalk_agent.protocol.http import Transport
from musetalk_agent.publishers.adaptation import Adaptation, Health, judge_room, judge_stream
from musetalk_agent.publishers.livekit import LiveKitPublisher
from musetalk_agent.publishers.stream import StreamSink
from musetalk_agent.publishers.transport import Reading

_EVERY_S = 1.0
_GRACE_S = 5.0  # the estimation of a new connection begins low


class QualityWatch:
    """Looks at the sink in use once a second.

    Args:
        bitrate: bit/s of the pictures at full quality.
        fps: pictures a second at full quality.
        now: monotonic seconds.
    """

    def __init__(self, bitrate: int, fps: int, now: float) -> None:
        self._bitrate, self._fps = bitrate, fps
        self._adaptation = Adaptation(now)
        self._sink: LiveKitPublisher | StreamSink | None = None
        self._since = self._looked_at = now
        self._reading = Reading()
        self._frames = self._dropped = 0
        ADAPTATION_STEP.labels("0").inc()

    def look(
        self, sink: LiveKitPublisher | StreamSink | None, frame: VideoFrame, transport: Transport, now: float
    ) -> None:
        """Brings quality and `transport` up to date; does nothing more than once a second."""
        if sink is not self._sink:
            self._begin(sink, now)
        if sink is None or now - self._looked_at < _EVERY_S:
            return
        passed_s, self._looked_at = now - self._looked_at, now
        if isinstance(sink, LiveKitPublisher):
            health = self._look_at_room(sink, passed_s, transport)
        else:
            health = self._look_at_stream(sink, passed_s, transport, frame)
        before = self._adaptation.step
        if now - self._since > _GRACE_S and self._adaptation.note(health, now):
            self._move(before, self._adaptation.step)
            self._apply(sink)
        transport.adaptation = self._adaptation.step

    def close(self) -> None:
        """The session is over."""
        ADAPTATION_STEP.labels(str(self._adaptation.step)).dec()

    def _begin(self, sink: LiveKitPublisher | StreamSink | None, now: float) -> None:
        """Another way out: nothing is known against it, and full quality is tried."""
        self._sink, self._since, self._looked_at = sink, now, now
        self._reading, self._frames, self._dropped = Reading(), 0, 0
        before, self._adaptation = self._adaptation.step, Adaptation(now)
        self._move(before, 0)
        if before and sink is not None:
            self._apply(sink)

    def _look_at_room(self, room: LiveKitPublisher, passed_s: float, transport: Transport) -> Health:
        before, reading = self._reading, room.reading
        self._reading = reading
        transport.width, transport.height = reading.width or None, reading.height or None
        transport.fps = round(max(0, reading.frames_sent - before.frames_sent) / passed_s, 1)
        transport.bitrate = round(max(0, reading.bytes_sent - before.bytes_sent) * 8 / passed_s)
        return judge_room(before, reading, self._bitrate, self._fps, self._adaptation.step)

    def _look_at_stream(self, sink: StreamSink, passed_s: float, transport: Transport, frame: VideoFrame) -> Health:
        state = sink.state
        sent, dropped = state.frames_sent - self._frames, state.dropped - self._dropped
        self._frames, self._dropped = state.frames_sent, state.dropped
        transport.width, transport.height = frame.width, frame.height
        transport.fps = round(sent / passed_s, 1)
        transport.bitrate = self._stream_bitrate()
        return judge_stream(state.queue_s, dropped)

    def _stream_bitrate(self) -> int:
        quality = self._adaptation.quality
        return round(self._bitrate * quality.bitrate * quality.scale**2)

    def _apply(self, sink: LiveKitPublisher | StreamSink) -> None:
        quality = self._adaptation.quality
        if isinstance(sink, LiveKitPublisher):
            sink.set_quality(scale=quality.scale, fps_divisor=quality.fps_divisor)
        else:
            sink.set_quality(bitrate=self._stream_bitrate(), fps_divisor=quality.fps_divisor)

    def _move(self, before: int, after: int) -> None:
        if before != after:
            ADAPTATION_STEP.labels(str(before)).dec()
            ADAPTATION_STEP.labels(str(after)).inc()
