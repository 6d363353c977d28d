"""Sessions whose LiveKit, RTMP or WHIP service accepts and says nothing, or too much: an error with a code, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from livekit import rtc
from livekit.rtc.participant import PublishTrackError

from musetalk_agent.agent_metrics import PUBLISHER_RUNG
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.errors import PublishFailed
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers.failover import policy, transports
from musetalk_agent.publishers.failover.policy import TransportKind
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_agent.publishers.failover.transports import Probe, TransportOptions
from musetalk_agent.publishers.livekit import publisher as livekit_publisher
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions, LiveKitPublisher
from musetalk_agent.publishers.livekit.stats import TransportStats
from musetalk_agent.publishers.stream.encoder import StreamShape
from musetalk_agent.publishers.whip import sink
from musetalk_tools.livekit_server import LiveKitAccess
from tests.musetalk_agent.publishers.failing import ROOM, failing, probe_token, sfu
from tests.musetalk_agent.publishers.feed import picture
from tests.musetalk_agent.publishers.test_rtmp_hostile import Behaviour, server, silent, trickle
from tests.viewer import join_token
from tests.waiting import NEVER_S, until

NOBODY = LiveKitAccess("ws://127.0.0.1:1", "key", "s" * 32)


def left_behind(*more: str) -> list[str]:
    """Names of tasks and threads of a session that is over. A join that hangs cannot be cancelled: it only counts with `more`."""
    ours = ("failover-", "session-", "probe", "rtmp-", "whip-", "pipeline", *more)
    names = [task.get_name() for task in asyncio.all_tasks() if not task.done()]
    names += [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(ours)]


async def nothing_left(*more: str) -> None:
    """Threads say that they have ended just before they do."""
    await until(lambda: not (left_behind(*more)))


@pytest.mark.parametrize("behave", [silent, trickle])
async def test_a_start_at_a_livekit_that_says_nothing_fails_with_its_code(
    behave: Behaviour, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "ALONE_AT_START_S", 1.0)
    with server(behave) as address:
        url = f"ws://127.0.0.1:{address.port}"
        async with failing(NOBODY, executor, url=url) as made:
            async with asyncio.timeout(NEVER_S):
                with pytest.raises(PublishFailed, match=url) as reported:
                    await made.session.start()
            assert reported.value.code.value == "livekit_unavailable"
            assert made.session.state == "failed" and made.session.error is not None
            assert made.session.error["code"] == "livekit_unavailable"
        await nothing_left()
    await nothing_left("livekit-")  # the join ends with the server, or by itself


@pytest.mark.parametrize("behave", [silent, trickle])
async def test_a_start_on_an_rtmp_server_that_says_nothing_fails_with_its_code(
    behave: Behaviour, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "STREAM_AT_START_S", 1.0)
    with server(behave) as address:
        url = f"rtmp://127.0.0.1:{address.port}/live/secret-key"
        async with failing(NOBODY, executor, url, mode=PublisherMode.RTMP) as made:
            async with asyncio.timeout(NEVER_S):
                with pytest.raises(PublishFailed, match="does not connect") as reported:
                    await made.session.start()
            assert reported.value.code.value == "livekit_unavailable" and "secret-key" not in str(reported.value)
        await nothing_left()


@pytest.mark.livekit
async def test_a_livekit_that_falls_silent_while_speaking_ends_the_session_with_its_code_and_stop_does_not_hang(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "LOST_S", 1.0)
    async with sfu() as made_server, failing(made_server.access, executor) as made:
        await made.session.start()
        made.say(np.full(16_000 * 8, 9000, np.int16))
        made_server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(NEVER_S):
                await made.session.ended.wait()
                await made.session.stop()
        finally:
            made_server.signal(signal.SIGCONT)
        assert made.session.state == "failed" and made.session.error is not None
        assert made.session.error["code"] == "livekit_unavailable"
        await nothing_left()


@pytest.mark.livekit
async def test_stop_does_not_wait_for_a_livekit_that_hangs(executor: ThreadPoolExecutor) -> None:
    async with sfu() as made_server, failing(made_server.access, executor) as made:
        await made.session.start()
        made_server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(NEVER_S):
                await made.session.stop()
        finally:
            made_server.signal(signal.SIGCONT)
        assert made.session.state == "stopped"
        await nothing_left()


def publisher(access: LiveKitAccess) -> LiveKitPublisher:
    token = join_token(access, ROOM, "avatar", "agent", publish=True)
    return LiveKitPublisher(LiveKitOptions(access.url, token, ROOM, 25), MonotonicClock())


async def failed_join(access: LiveKitAccess, match: str) -> str:
    """The message of the error that opening a publisher raises. It is closed."""
    made = publisher(access)
    try:
        async with asyncio.timeout(NEVER_S):
            with pytest.raises(PublishFailed, match=match) as caught:
                await made.open(picture(90), lambda _: None)
        return str(caught.value)
    finally:
        await made.aclose()


@pytest.mark.livekit
async def test_tracks_that_are_never_acknowledged_fail_the_join(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livekit_publisher, "_PUBLISH_TIMEOUT_S", 0.2)

    async def never(self: rtc.LocalParticipant, *_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rtc.LocalParticipant, "publish_track", never)
    await failed_join(livekit_server, "does not answer in time")


@pytest.mark.livekit
@pytest.mark.parametrize("refused", ["avatar-audio", "avatar-video"])
async def test_a_track_that_is_refused_fails_the_join_and_the_other_one_is_given_up(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    asked, given_up, both = list[str](), list[str](), asyncio.Event()

    async def one_is_refused(self: rtc.LocalParticipant, track: rtc.LocalTrack, _: object) -> None:
        asked.append(track.name)
        if len(asked) == 2:
            both.set()
        await both.wait()
        if track.name == refused:
            raise PublishTrackError("no permission to publish this")
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(track.name)

    monkeypatch.setattr(rtc.LocalParticipant, "publish_track", one_is_refused)
    await failed_join(livekit_server, "no permission to publish this")
    assert asked == ["avatar-audio", "avatar-video"], "the sound's request goes out first"
    assert given_up == [name for name in asked if name != refused]


@pytest.mark.livekit
async def test_any_error_of_the_sdk_at_the_join_is_a_failed_join_without_the_token(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(self: rtc.Room, url: str, token: str, *_: object) -> None:
        raise Exception(f"panic in the native library, token {token}")

    monkeypatch.setattr(rtc.Room, "connect", breaks)
    assert "eyJ" not in await failed_join(livekit_server, "panic in the native library")


@pytest.mark.livekit
async def test_a_block_that_the_sdk_never_takes_does_not_stop_the_voice(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livekit_publisher, "_CAPTURE_TIMEOUT_S", 0.1)
    asked: list[int] = []

    async def never(self: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
        asked.append(frame.samples_per_channel)
        await asyncio.Event().wait()

    made = publisher(livekit_server)
    try:
        await made.open(picture(90), lambda _: None)
        monkeypatch.setattr(rtc.AudioSource, "capture_frame", never)
        async with asyncio.timeout(NEVER_S):
            for _ in range(3):
                await made.push_audio(np.ones(1920, np.int16))
        assert asked == [1920] * 3 and made.state.error is not None and "TimeoutError" in made.state.error
    finally:
        await made.aclose()


async def test_a_block_whose_future_the_sdk_cancels_does_not_end_the_voice() -> None:
    async def cancelled(_: rtc.AudioFrame) -> None:
        raise asyncio.CancelledError

    made = publisher(NOBODY)
    made._audio = SimpleNamespace(capture_frame=cancelled)  # type: ignore[assignment]  # all of it that is used here
    try:
        await made.push_audio(np.ones(1920, np.int16))
        assert made.state.error is not None and "CancelledError" in made.state.error
    finally:
        made._audio = None
        await made.aclose()


async def test_an_end_of_the_transports_that_breaks_still_takes_the_session_out_of_the_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = FailoverPublisher(
        TransportOptions(LiveKitOptions("ws://x", "t", ROOM, 25)), PublisherMode.AUTO, MonotonicClock()
    )
    gauge = PUBLISHER_RUNG.labels("livekit")
    before = gauge._value.get()
    made._change(TransportKind.LIVEKIT)
    assert gauge._value.get() == before + 1

    async def breaks() -> None:
        raise OSError("broken")

    with caplog.at_level(logging.ERROR):
        await asyncio.wait([made._transports._spawn(breaks(), "failover-test")])
        await asyncio.sleep(0)
    assert "a task of a transport broke" in caplog.messages
    monkeypatch.setattr(made._transports, "aclose", breaks)
    with pytest.raises(OSError, match="broken"):
        await made.aclose()
    assert gauge._value.get() == before and not made.state.connected


@pytest.mark.livekit
async def test_statistics_go_on_after_an_error_that_no_one_expected(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def breaks_once(reading: TransportStats) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("cannot convert float NaN to integer")

    made = publisher(livekit_server)
    monkeypatch.setattr(made, "_acknowledge", breaks_once)
    try:
        await made.open(picture(90), lambda _: None)
        await until(lambda: calls >= 2)
    finally:
        await made.aclose()


@pytest.mark.livekit
async def test_a_probe_goes_on_after_an_error_that_no_one_expected(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "_EVERY_S", 0.01)
    joins = 0
    connect: Callable[..., Awaitable[None]] = rtc.Room.connect

    async def breaks_twice(self: rtc.Room, *arguments: object) -> None:
        nonlocal joins
        joins += 1
        if joins <= 2:
            raise Exception("the library is in a bad mood")
        await connect(self, *arguments)

    monkeypatch.setattr(rtc.Room, "connect", breaks_twice)
    reported: asyncio.Queue[bool] = asyncio.Queue()

    def report(healthy: bool) -> None:
        reported.put_nowait(healthy)
        if reported.qsize() == 1 and joins == 1:
            raise RuntimeError("a fault of the listener")

    made = Probe(livekit_server.url, probe_token(livekit_server), report, 0.0)
    try:
        async with asyncio.timeout(NEVER_S):
            assert [await reported.get() for _ in range(3)] == [False, False, True]
    finally:
        await made.aclose()


async def test_a_probe_of_an_address_that_cannot_be_says_no() -> None:
    assert not await transports.answers("ws://127.0.0.1:99999")
    assert not await transports.answers(f"ws://{'a' * 70}.test:80")


def answers_with_a_flood(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nLocation: /x\r\n\r\n")
    while not over.is_set():
        connection.sendall(b"a=x:" + b"b" * 60_000 + b"\r\n")


def heads_without_end(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 201 Created\r\n")
    while not over.is_set():
        connection.sendall(b"X-More: " + b"b" * 1000 + b"\r\n")


@pytest.mark.parametrize("behave", [silent, trickle, answers_with_a_flood, heads_without_end])
async def test_whip_answers_have_a_deadline_and_leave_no_process(
    behave: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_CONNECT_S", 3.0)
    with server(behave) as address:
        push = sink._WhipPush(f"http://127.0.0.1:{address.port}/whip/v1", "token")
        try:
            async with asyncio.timeout(NEVER_S):
                with pytest.raises(OSError):
                    await asyncio.to_thread(push.open, StreamShape(64, 64, 25, 100_000))
            process = push._process
        finally:
            push.close()
        assert process is not None and process.returncode is not None
