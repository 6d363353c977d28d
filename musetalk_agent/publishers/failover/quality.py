"""Adapts the quality of the video to what the connection carries: the steps, when to change them, and what is sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from musetalk_agent.agent_metrics import ADAPTATION_STEP
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.http import Transport, VideoCodec
from musetalk_agent.publishers.livekit.publisher import LiveKitPublisher
from musetalk_agent.publishers.livekit.stats import TransportStats
from musetalk_agent.publishers.stream.sink import StreamSink

DOWN_S = 2.0
UP_S = 8.0
_MOST_UP_S = 64.0
_RELAPSE_S = 10.0  # bad again so soon after a step up: the next one waits twice as long
_LAG = 0.8  # an encoder that needs more of a frame's time than this is about to fall behind
_LOSS_BAD, _LOSS_FAIR = 0.15, 0.08
_SHORT, _ENOUGH = 0.5, 0.8  # of the bitrate that a step wants
_QUEUE_BAD_S, _QUEUE_FAIR_S = 0.4, 0.2


@dataclass(frozen=True, slots=True)
class Quality:
    """One step: `bitrate` and `scale` (of width and height) as shares of the full ones, and every how many frames one goes."""

    bitrate: float = 1.0
    scale: float = 1.0
    fps_divisor: int = 1

    @property
    def share(self) -> float:
        """Of the full bitrate, what this needs."""
        return self.bitrate * self.scale**2 / self.fps_divisor


STEPS = (
    Quality(),
    Quality(0.6),
    Quality(0.35),
    Quality(0.35, 0.75),
    Quality(0.35, 0.5),
    Quality(0.35, 0.5, 2),
)


class Health(Enum):
    """Of the connection. `GOOD`: a step up would fit."""

    BAD = auto()
    FAIR = auto()
    GOOD = auto()


class Adaptation:
    """Decides on the step, with hysteresis: one down for every 2 s that are bad, one up for every 8 s that are good throughout.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.step = 0
        self._since = now  # this health, or the last step
        self._health = Health.GOOD
        self._up_s = UP_S
        self._raised_at = float("-inf")

    @property
    def quality(self) -> Quality:
        """What the step means."""
        return STEPS[self.step]

    def note(self, health: Health, now: float) -> bool:
        """Takes the present health; returns whether the step has changed."""
        if health is not self._health:
            self._health, self._since = health, now
        elapsed = now - self._since
        if health is Health.BAD and elapsed >= DOWN_S and self.step < len(STEPS) - 1:
            relapse = now - self._raised_at < _RELAPSE_S
            self._up_s = min(_MOST_UP_S, 2 * self._up_s) if relapse else self._up_s
            self.step += 1
        elif health is Health.GOOD and self.step and elapsed >= self._up_s:
            self.step -= 1
            self._raised_at = now
            self._up_s = self._up_s if self.step else UP_S
        else:
            return False
        self._since = now
        return True


def judge_room(before: TransportStats, after: TransportStats, wanted: int, fps: int, step: int) -> Health:
    """Health of a room, from two readings some time apart.

    Args:
        wanted: bit/s at full quality.
        fps: frames a second at full quality.
    """
    encoded = after.frames_encoded - before.frames_encoded
    lags = encoded > 0 and (after.encode_s - before.encode_s) / encoded > _LAG * STEPS[step].fps_divisor / fps
    available = after.available_bitrate
    short = after.limited and available < _SHORT * wanted * STEPS[step].share
    if lags or short or after.fraction_lost > _LOSS_BAD:
        return Health.BAD
    fits = available >= _ENOUGH * wanted * STEPS[max(0, step - 1)].share
    return Health.GOOD if fits and after.fraction_lost <= _LOSS_FAIR else Health.FAIR


def judge_stream(queue_s: float, dropped: int) -> Health:
    """Health of a stream: what waits in it, and how many frames were dropped since the last look."""
    if dropped or queue_s > _QUEUE_BAD_S:
        return Health.BAD
    return Health.FAIR if queue_s > _QUEUE_FAIR_S else Health.GOOD


_EVERY_S = 1.0
_GRACE_S = 5.0  # the estimation of a new connection begins low


class QualityController:
    """Looks at the sink in use once a second.

    Args:
        bitrate: bit/s of the frames at full quality.
        fps: frames a second at full quality.
        now: monotonic seconds.
    """

    def __init__(self, bitrate: int, fps: int, now: float) -> None:
        self._bitrate, self._fps = bitrate, fps
        self._adaptation = Adaptation(now)
        self._sink: LiveKitPublisher | StreamSink | None = None
        self._since = self._looked_at = now
        self._reading = TransportStats()
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
        """Another transport: nothing is known against it, and full quality is tried."""
        self._sink, self._since, self._looked_at = sink, now, now
        self._reading, self._frames, self._dropped = TransportStats(), 0, 0
        before, self._adaptation = self._adaptation.step, Adaptation(now)
        self._move(before, 0)
        if before and sink is not None:
            self._apply(sink)

    def _look_at_room(self, room: LiveKitPublisher, passed_s: float, transport: Transport) -> Health:
        before, reading = self._reading, room.reading
        self._reading = reading
        transport.width, transport.height = reading.width or None, reading.height or None
        transport.video_codec = reading.codec or None
        transport.fps = round(max(0, reading.frames_sent - before.frames_sent) / passed_s, 1)
        transport.bitrate = round(max(0, reading.bytes_sent - before.bytes_sent) * 8 / passed_s)
        return judge_room(before, reading, self._bitrate, self._fps, self._adaptation.step)

    def _look_at_stream(self, sink: StreamSink, passed_s: float, transport: Transport, frame: VideoFrame) -> Health:
        state = sink.state
        sent, dropped = state.frames_sent - self._frames, state.dropped - self._dropped
        self._frames, self._dropped = state.frames_sent, state.dropped
        transport.width, transport.height, transport.video_codec = frame.width, frame.height, VideoCodec.H264.value
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
