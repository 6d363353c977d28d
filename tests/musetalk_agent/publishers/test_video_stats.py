"""What is read of a video in one size and in several."""

from __future__ import annotations

import pytest
from livekit.rtc._proto import stats_pb2 as proto

from musetalk_agent.publishers.livekit.stats import read


def layer(
    width: int, sent: int, encode_s: float, *, active: bool = True, limited: bool = False, codec: str = "C1"
) -> proto.RtcStats:
    entry = proto.RtcStats()
    stats = entry.outbound_rtp
    stats.stream.kind, stats.stream.codec_id = "video", codec
    out = stats.outbound
    out.frame_width, out.frame_height, out.active = width, width, active
    out.frames_sent, out.frames_encoded, out.total_encode_time = sent, sent + 1, encode_s
    out.quality_limitation_reason = (
        proto.QualityLimitationReason.LIMITATION_BANDWIDTH if limited else proto.QualityLimitationReason.LIMITATION_NONE
    )
    return entry


def codec(name: str, mime: str) -> proto.RtcStats:
    entry = proto.RtcStats()
    entry.codec.rtc.id, entry.codec.codec.mime_type = name, mime
    return entry


def report(round_trips: int, lost: float) -> proto.RtcStats:
    entry = proto.RtcStats()
    entry.remote_inbound_rtp.stream.kind = "video"
    entry.remote_inbound_rtp.remote_inbound.round_trip_time_measurements = round_trips
    entry.remote_inbound_rtp.remote_inbound.fraction_lost = lost
    return entry


def test_of_several_sizes_the_largest_is_shown_and_the_last_one_encoded_is_timed() -> None:
    layers = [layer(320, 60, 0.9, limited=True), layer(1280, 100, 0.5), layer(640, 80, 0.7)]
    found = read([codec("C0", "audio/opus"), codec("C1", "video/H264"), *layers, report(3, 0.0), report(4, 0.25)])
    assert (found.frames_sent, found.width, found.height, found.codec) == (100, 1280, 1280, "h264")
    assert (found.frames_encoded, found.encode_s, found.limited) == (61, 0.9, True)
    assert (found.reports, found.fraction_lost) == (7, 0.25)


def test_a_size_that_is_not_sent_does_not_count() -> None:
    found = read([layer(1280, 100, 0.5, active=False, limited=True), layer(640, 80, 0.7)])
    assert (found.frames_sent, found.width, found.limited) == (80, 640, False)


@pytest.mark.parametrize("active", [True, False])
def test_one_size_is_read_whether_it_is_sent_or_not(active: bool) -> None:
    found = read([codec("C1", "video/VP8"), layer(512, 7, 0.1, active=active)])
    assert (found.frames_sent, found.width, found.codec, found.frames_encoded) == (7, 512, "vp8", 8)
    assert found.encodes is active


def test_without_video_nothing_is_known() -> None:
    found = read([codec("C1", "video/VP8")])
    assert (found.frames_sent, found.width, found.codec) == (0, 0, "")
