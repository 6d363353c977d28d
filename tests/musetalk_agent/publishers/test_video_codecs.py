"""Codecs and sizes in a real room: what is negotiated, which size a viewer gets, and that both follow what was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest
from livekit import rtc

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.http import Transport, VideoCodec
from musetalk_agent.publishers.failover.quality import QualityController
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions, LiveKitPublisher
from musetalk_agent.publishers.livekit.video_track import VideoEncoding, video_bitrate
from musetalk_tools.livekit_server import LiveKitAccess
from tests.viewer import Viewer, join_token
from tests.waiting import until

pytestmark = pytest.mark.livekit
ROOM = "studio"


def pattern(width: int, height: int) -> VideoFrame:
    """Dark with a white middle, which the viewer's mean luma of the centre tells from everything else."""
    luma = np.full((height, width), 40, np.uint8)
    luma[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 220
    planes = np.concatenate([luma.ravel(), np.full(width * height // 2, 128, np.uint8)])
    return VideoFrame(planes, width, height, 0)


@contextmanager
def shown(publisher: LiveKitPublisher, frame: VideoFrame, fps: int) -> Iterator[None]:
    """The frame is pushed again and again."""

    async def push() -> None:
        while True:
            publisher.push_video(frame)
            await asyncio.sleep(1 / fps)

    task = asyncio.create_task(push())
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def on_air(
    access: LiveKitAccess, video: VideoEncoding, size: tuple[int, int] = (512, 512), fps: int = 25
) -> AsyncIterator[tuple[LiveKitPublisher, Viewer, rtc.RemoteTrackPublication]]:
    """A publisher of one still picture, and a viewer who sees it."""
    token = join_token(access, ROOM, "avatar", "agent", publish=True)
    publisher = LiveKitPublisher(LiveKitOptions(access.url, token, ROOM, fps, video=video), MonotonicClock())
    viewer, frame = await Viewer().join(access.url, join_token(access, ROOM, "viewer")), pattern(*size)
    try:
        await publisher.open(frame, lambda _: None)
        with shown(publisher, frame, fps):
            await until(lambda: viewer.video)
            tracks = viewer.room.remote_participants["avatar"].track_publications.values()
            yield publisher, viewer, next(track for track in tracks if track.kind == rtc.TrackKind.KIND_VIDEO)
    finally:
        await viewer.leave()
        await publisher.aclose()


def width_of(viewer: Viewer) -> int:
    return viewer.video[-1][2]


@pytest.mark.parametrize("simulcast", [False, True])
@pytest.mark.parametrize(
    ("codec", "mime"),
    [(VideoCodec.VP8, "video/vp8"), (VideoCodec.H264, "video/h264"), (VideoCodec.AUTO, "video/h264")],
)
async def test_the_room_gets_the_codec_and_the_picture(
    livekit_server: LiveKitAccess, codec: VideoCodec, mime: str, simulcast: bool
) -> None:
    async with on_air(livekit_server, VideoEncoding(codec, simulcast)) as (publisher, viewer, track):
        assert (track.mime_type.lower(), track.simulcasted) == (mime, simulcast)
        await until(lambda: width_of(viewer) == 512 and abs(viewer.video[-1][1] - 220) < 6)
        # before the first frames the SDK's statistics may name another one
        await until(lambda: publisher.reading.codec == codec.chosen.value)
        await until(lambda: (publisher.reading.width, publisher.reading.height) == (512, 512))
        await until(lambda: publisher.state.acknowledged_frames > 25)


async def test_an_offer_for_the_audio_cannot_come_between_the_video_and_its_codec(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = rtc.LocalParticipant.publish_track, list[str]()

    async def noted(
        participant: rtc.LocalParticipant, track: rtc.LocalTrack, options: rtc.TrackPublishOptions
    ) -> rtc.LocalTrackPublication:
        steps.append(f"{track.name} begins")
        publication = await real(participant, track, options)
        steps.append(f"{track.name} is published")
        return publication

    monkeypatch.setattr(rtc.LocalParticipant, "publish_track", noted)
    async with on_air(livekit_server, VideoEncoding(VideoCodec.H264)) as (publisher, _, _track):
        assert steps == [
            "avatar-video begins",
            "avatar-video is published",
            "avatar-audio begins",
            "avatar-audio is published",
        ]
        assert [track.kind for track in publisher.state.tracks] == ["audio", "video"]


@pytest.mark.parametrize("codec", [VideoCodec.VP8, VideoCodec.H264])
async def test_a_viewer_chooses_among_the_sizes_and_goes_back(livekit_server: LiveKitAccess, codec: VideoCodec) -> None:
    async with on_air(livekit_server, VideoEncoding(codec, simulcast=True), (1280, 720)) as (_, viewer, track):
        await until(lambda: width_of(viewer) == 1280)
        for quality, width in (
            (rtc.VideoQuality.VIDEO_QUALITY_LOW, 320),
            (rtc.VideoQuality.VIDEO_QUALITY_HIGH, 1280),
            (rtc.VideoQuality.VIDEO_QUALITY_MEDIUM, 640),
        ):
            track.set_video_quality(quality)
            await until(lambda width=width: width_of(viewer) == width)
            assert abs(viewer.video[-1][1] - 220) < 6, "the same picture, and no blank between"


async def test_two_viewers_get_each_their_size(livekit_server: LiveKitAccess) -> None:
    async with on_air(livekit_server, VideoEncoding(VideoCodec.H264, simulcast=True), (1280, 720)) as (
        _,
        large,
        _track,
    ):
        phone = await Viewer().join(livekit_server.url, join_token(livekit_server, ROOM, "phone"))
        try:
            await until(lambda: phone.video)
            tracks = phone.room.remote_participants["avatar"].track_publications.values()
            video = next(track for track in tracks if track.kind == rtc.TrackKind.KIND_VIDEO)
            video.set_video_quality(rtc.VideoQuality.VIDEO_QUALITY_LOW)
            await until(lambda: width_of(phone) == 320 and width_of(large) == 1280)
        finally:
            await phone.leave()


@pytest.mark.parametrize("simulcast", [False, True])
async def test_the_adaptation_makes_h264_smaller_and_large_again(
    livekit_server: LiveKitAccess, simulcast: bool
) -> None:
    async with on_air(livekit_server, VideoEncoding(VideoCodec.H264, simulcast)) as (publisher, viewer, _):
        await until(lambda: width_of(viewer) == 512)
        publisher.set_quality(scale=0.5, fps_divisor=1)
        await until(lambda: width_of(viewer) == 256)
        publisher.set_quality(scale=1.0, fps_divisor=1)
        await until(lambda: width_of(viewer) == 512)


async def test_sixty_frames_a_second_are_asked_for_and_sent(livekit_server: LiveKitAccess) -> None:
    frame, fps = pattern(256, 256), 60
    async with on_air(livekit_server, VideoEncoding(VideoCodec.H264), (256, 256), fps) as (publisher, viewer, _):
        before, pushed = len(viewer.video), publisher.state.published_frames
        await until(lambda: publisher.state.published_frames - pushed > 120)
        # no encoder's rate control dropped every second one
        await until(lambda: len(viewer.video) - before > 100)
    assert video_bitrate(frame) == video_bitrate(pattern(512, 512)) == 1_000_000
    assert video_bitrate(pattern(1280, 720)) == 3_000_000


async def test_what_is_in_use_is_reported(livekit_server: LiveKitAccess) -> None:
    frame, transport = pattern(512, 512), Transport()
    async with on_air(livekit_server, VideoEncoding(VideoCodec.AUTO)) as (publisher, _, _track):
        try:
            await until(lambda: publisher.reading.codec == "h264" and publisher.reading.width)
        except AssertionError as error:
            error.add_note(f"statistics of the publisher: {publisher.reading}")
            raise
        controller = QualityController(video_bitrate(frame), 25, 0.0)
        try:
            controller.look(publisher, frame, transport, 0.0)
            controller.look(publisher, frame, transport, 2.0)
        finally:
            controller.close()
        # on a busy machine the encoder may have made it smaller
        shown = (publisher.reading.width, publisher.reading.height)
    assert (transport.video_codec, transport.width, transport.height) == ("h264", *shown)
