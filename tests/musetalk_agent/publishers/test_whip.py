"""WHIP against a real livekit-server: the token's participant is seen and heard in step, and its end or the server's is noticed."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.publishers.stream.sink import StreamOptions
from musetalk_agent.publishers.whip.sink import WhipSink, whip_url
from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from tests.musetalk_agent.publishers.feed import BLOCK, FPS, feed, picture
from tests.viewer import Viewer, join_token
from tests.waiting import NEVER_S, until


def sink_to(access: LiveKitAccess) -> WhipSink:
    token = join_token(access, "whip", "avatar", publish=True)
    return WhipSink(StreamOptions(access.url, FPS, 256, 256, 800_000, token=token), MonotonicClock(), lambda: None)


def test_the_address_is_made_of_the_room_s() -> None:
    assert whip_url("ws://127.0.0.1:7880") == "http://127.0.0.1:7880/whip/v1"
    assert whip_url("wss://live.example/") == "https://live.example/whip/v1"


async def test_a_viewer_sees_and_hears_the_avatar_in_step(livekit_server: LiveKitAccess) -> None:
    viewer = await Viewer().join(livekit_server.url, join_token(livekit_server, "whip", "viewer"))
    sink = sink_to(livekit_server)
    sink.start()
    try:
        await until(lambda: sink.state.connected)
        wave = np.zeros(4 * FPS * BLOCK, np.int16)
        tone = (10_000 * np.sin(2 * np.pi * 1000 * np.arange(3 * BLOCK) / 48_000)).astype(np.int16)
        white, black = picture(235), picture(16)
        for second in range(4):  # heard at 0.2 s of each second, with the flash
            begin = int((second + 0.2 - 0.06) * 48_000)
            wave[begin : begin + len(tone)] = tone
        await feed(sink, 4 * FPS, wave, lambda frame: white if frame % FPS in (5, 6, 7) else black)
        await until(lambda: len(viewer.whites()) >= 2 and len(viewer.onsets()) >= 2)
        whites, onsets = viewer.whites(), viewer.onsets()
        skews = [min(onsets, key=lambda onset: abs(onset - white)) - white for white in whites]
        assert abs(float(np.median(skews))) < 0.3  # each flash has its burst; how exactly they meet is the bench's
        assert {who for _, who in viewer.tracks} == {"avatar"} and len(viewer.tracks) == 2
        await sink.aclose()
        await until(lambda: viewer.gone == ["avatar"])
    finally:
        await sink.aclose()
        await viewer.leave()


async def test_a_dead_server_is_noticed_and_holds_nobody_up() -> None:
    program = find()
    assert program is not None
    server = LiveKitServer(program, log_level="error")
    await server.start()
    sink = sink_to(server.access)
    sink.start()
    try:
        await until(lambda: sink.state.connected)
        await feed(sink, FPS // 2, None, lambda frame: picture(90))
        assert server.child.pid is not None
        os.kill(server.child.pid, signal.SIGKILL)
        grey = picture(90)
        async with asyncio.timeout(NEVER_S):
            while not sink.state.error:
                await feed(sink, 1, None, lambda frame: grey)
            assert not sink.state.connected
            await sink.aclose()
    finally:
        await sink.aclose()
        await server.stop()


async def test_a_token_that_is_refused_is_reported_and_tried_again_slowly(livekit_server: LiveKitAccess) -> None:
    reported = asyncio.Event()
    options = StreamOptions(livekit_server.url, FPS, 256, 256, 800_000, token="not-a-token")
    sink = WhipSink(options, MonotonicClock(), reported.set)
    sink.start()
    try:
        await asyncio.wait_for(reported.wait(), NEVER_S)
        assert sink.state.error and "not-a-token" not in sink.state.error and "not-a-token" not in repr(options)
    finally:
        await sink.aclose()
