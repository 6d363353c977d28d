"""Reads from the SDK's WebRTC statistics whether the SFU still answers, and how much bandwidth the connection has.

Liveness is the count of packets received on the candidate pairs, and the time of the last one. Feedback about the frames
(transport-wide congestion control) comes every 0.1 to 0.3 s as long as frames flow. Without them receiver reports would be 1 s and
STUN answers 2.5 s apart; then `keep_answers_coming` sends data packets, which the SFU itself acknowledges within 0.2 s (SCTP), for
any addressee. Measured: docs/explanation/failover.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from livekit import rtc

from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors

_UNANSWERED_S = 6.0
"""Frames leave and the SFU's receiver reports, which come every second, do not come for so long: it does not take them."""
_BANDWIDTH = 2  # QualityLimitationReason


@dataclass(slots=True)
class TransportStats:
    """One reading of the statistics; counts since the connection began, rates in bit/s, times in seconds."""

    packets_received: int = 0
    received_at_ms: float = 0.0  # wall clock, of the last packet
    bytes_sent: int = 0
    available_bitrate: float = 0.0
    frames_sent: int = 0
    frames_encoded: int = 0
    encode_s: float = 0.0
    limited: bool = False  # the encoder is held back for want of bandwidth
    encodes: bool = True  # False while the SDK encodes no video for want of a subscriber
    reports: int = 0
    fraction_lost: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""  # `vp8` or `h264`


def read(entries: Iterable[Any]) -> TransportStats:
    """Reads `get_rtc_stats().publisher_stats`.

    Of a video in several sizes the frames are those of the largest that is sent, and the time of encoding is that of the
    smallest: it is encoded last, and its time begins with the frame.
    """
    found, codecs = TransportStats(), dict[str, str]()
    layers: list[Any] = []
    for entry in entries:
        kind = entry.WhichOneof("stats")
        if kind == "candidate_pair":
            pair = entry.candidate_pair.candidate_pair
            found.packets_received += pair.packets_received
            found.received_at_ms = max(found.received_at_ms, pair.last_packet_received_timestamp)
            found.bytes_sent += pair.bytes_sent
            found.available_bitrate = max(found.available_bitrate, pair.available_outgoing_bitrate)
        elif kind == "outbound_rtp" and entry.outbound_rtp.stream.kind == "video":
            layers.append(entry.outbound_rtp)
        elif kind == "codec":
            codecs[entry.codec.rtc.id] = entry.codec.codec.mime_type.rpartition("/")[2].lower()
        elif kind == "remote_inbound_rtp" and entry.remote_inbound_rtp.stream.kind == "video":
            remote = entry.remote_inbound_rtp.remote_inbound
            found.reports += remote.round_trip_time_measurements
            found.fraction_lost = max(found.fraction_lost, remote.fraction_lost)
    if layers:
        _read_video(found, layers, codecs)
    return found


def _read_video(found: TransportStats, layers: list[Any], codecs: dict[str, str]) -> None:
    sent = [layer for layer in layers if layer.outbound.active] or layers
    largest = max(sent, key=lambda layer: layer.outbound.frame_width)
    smallest = min(sent, key=lambda layer: layer.outbound.frame_width).outbound
    found.frames_sent, found.codec = largest.outbound.frames_sent, codecs.get(largest.stream.codec_id, "")
    found.width, found.height = largest.outbound.frame_width, largest.outbound.frame_height
    found.frames_encoded, found.encode_s = smallest.frames_encoded, smallest.total_encode_time
    found.encodes = any(layer.outbound.active for layer in layers)
    found.limited = any(layer.outbound.quality_limitation_reason == _BANDWIDTH for layer in sent)


class Liveness:
    """When something last came back. Times are monotonic seconds.

    `heard_at`: what was heard then has reached the SFU. `silent_s`: how long ago that was, when it was last looked at.

    Args:
        now: the connection has just been made.
    """

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.silent_s = 0.0
        self._last_at = now
        self._polled_at = now
        self._packets = 0
        self._reports = self._frames = 0
        self._answered_at = now

    def note(self, reading: TransportStats | None, now: float, wall_ms: float) -> None:
        """Takes a reading, or that there was none.

        The wall clock only places a packet between two readings, so that a step of it does no harm.
        """
        if reading is not None and reading.packets_received != self._packets and reading.packets_received:
            age = (wall_ms - reading.received_at_ms) / 1000
            self._last_at = max(self._last_at, now - min(max(0.0, age), now - self._polled_at))
            self._packets = reading.packets_received
        if reading is not None:
            if reading.reports != self._reports or reading.frames_sent == self._frames:
                self._answered_at = now
            self._reports, self._frames = reading.reports, reading.frames_sent
        self._polled_at = now
        unanswered = now - self._answered_at > _UNANSWERED_S
        self.heard_at = min(self._last_at, self._answered_at) if unanswered else self._last_at
        self.silent_s = now - self.heard_at


log = logging.getLogger(__name__)

PERIOD_S = 0.2
TOPIC = "avatar.alive"
_TIMEOUT_S = 0.5


async def keep_answers_coming(room: rtc.Room, wanted: Callable[[], bool]) -> None:
    """Sends the SFU a byte five times a second while `wanted()`, until cancelled.

    It is addressed to the sender, so that no participant gets it.
    """
    while True:
        await asyncio.sleep(PERIOD_S)
        if not wanted():
            continue
        me = room.local_participant
        try:
            with sdk_errors():
                async with asyncio.timeout(_TIMEOUT_S):
                    await me.publish_data(b".", reliable=False, destination_identities=[me.identity], topic=TOPIC)
        except (SdkError, TimeoutError) as error:  # as during a reconnect; the next one comes
            log.debug("no heartbeat", extra={"room": room.name, "error": repr(error)})
