"""RTMP against servers that say nothing, a byte at a time, or too much: each ends with a reason, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.publishers.rtmp import connection
from musetalk_agent.publishers.rtmp import protocol as wire
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.rtmp.connection import RtmpLink
from musetalk_agent.publishers.rtmp.sink import RtmpSink
from musetalk_agent.publishers.stream.sink import StreamOptions
from tests.musetalk_agent.publishers.feed import picture
from tests.waiting import NEVER_S

Behaviour = Callable[[socket.socket, threading.Event], None]
PING = wire.chunks(wire.RtmpMessage(wire.USER_CONTROL, struct.pack(">HI", wire.PING_REQUEST, 1)))


@contextmanager
def server(behave: Behaviour) -> Iterator[RtmpAddress]:
    """A server on loopback that treats every connection so, until the test is over."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(0.5)
            try:
                behave(connection, over)
            except OSError:
                pass

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield RtmpAddress("rtmp", "127.0.0.1", listening.getsockname()[1], "app", "secret-key", ("127.0.0.1",))
    finally:
        over.set()
        with socket.socket() as wake:
            wake.connect_ex(listening.getsockname())
        accepting.join(NEVER_S)
        listening.close()
        for thread in threads:
            thread.join(NEVER_S)


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def trickle(connection: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.02):
        connection.sendall(b"\x03")


def handshake(connection: socket.socket) -> None:
    connection.recv(1537)
    connection.sendall(b"\x03" + os.urandom(2 * wire.HANDSHAKE))
    connection.recv(65_536)


def silent_after_handshake(connection: socket.socket, over: threading.Event) -> None:
    handshake(connection)
    over.wait()


def chatter(connection: socket.socket, over: threading.Event) -> None:
    """Messages that are harmless, and never the answer."""
    handshake(connection)
    while not over.wait(0.02):
        connection.sendall(PING)


def results_of_others(connection: socket.socket, over: threading.Event) -> None:
    handshake(connection)
    while not over.wait(0.02):
        connection.sendall(wire.chunks(wire.command("_result", 99, None)))


def empty_chunks(connection: socket.socket, over: threading.Event) -> None:
    """Messages without a body, a byte each."""
    handshake(connection)
    connection.sendall(wire.chunks(wire.control(wire.SET_CHUNK_SIZE, 1 << 16)))
    connection.sendall(b"\x03" + bytes(6) + b"\x12" + bytes(4))
    while not over.is_set():
        connection.sendall(b"\xc3" * 16_384)


def one_long_message(connection: socket.socket, over: threading.Event) -> None:
    """Bodies of 60 kB, in chunks of 128."""
    handshake(connection)
    data = wire.chunks(wire.RtmpMessage(wire.DATA, bytes(60_000)), 128)
    while not over.is_set():
        connection.sendall(data)


def accept_publish(connection: socket.socket) -> None:
    handshake(connection)
    connection.sendall(wire.chunks(wire.command("_result", 1, None, {"code": "NetConnection.Connect.Success"})))
    connection.sendall(wire.chunks(wire.command("_result", 4, None, 1.0)))
    connection.sendall(wire.chunks(wire.command("onStatus", 0, None, {"code": "NetStream.Publish.Start"})))


def pings_once_connected(connection: socket.socket, over: threading.Event) -> None:
    accept_publish(connection)
    while not over.is_set():
        connection.sendall(PING * 100)


def reads_nothing_more(connection: socket.socket, over: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    accept_publish(connection)
    over.wait()


@pytest.mark.parametrize("behave", [silent, trickle, silent_after_handshake, chatter, results_of_others])
def test_connecting_has_one_deadline_whatever_the_portions(behave: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.5)
    with server(behave) as address:
        link = RtmpLink(address)
        ending = threading.Timer(20, link.abort)  # so that the test ends where the deadline does not hold
        ending.start()
        try:
            with pytest.raises(TimeoutError, match="too little in time"):
                link.open()
        finally:
            ending.cancel()
            link.close()


@pytest.mark.parametrize("behave", [empty_chunks, one_long_message])
def test_a_flood_ends_the_connection_with_a_reason(behave: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 20.0)
    with server(behave) as address:
        link = RtmpLink(address)
        link._allowance = connection._Allowance(lambda: 0.0)  # one second, however slowly this machine reads
        try:
            with pytest.raises(wire.RtmpError, match="floods"):
                link.open()
        finally:
            link.close()
        assert link._received < 3 * connection._MOST_BYTES and len(link._inbox) <= connection._MOST_MESSAGES


def test_a_flood_of_pings_ends_a_push_that_was_connected() -> None:
    with server(pings_once_connected) as address:
        link = RtmpLink(address)
        try:
            link.open()
            with pytest.raises((wire.RtmpError, OSError)) as reported:
                for _ in range(100_000):
                    link.poll()
            assert isinstance(reported.value, wire.RtmpError) or reported.value.errno
        finally:
            link.close()


@pytest.mark.parametrize("stream", [float("nan"), float("inf"), -1.0, 2.0**40])
def test_a_stream_that_cannot_be_is_refused(stream: float) -> None:
    def behave(connection: socket.socket, over: threading.Event) -> None:
        handshake(connection)
        connection.sendall(wire.chunks(wire.command("_result", 1, None)))
        connection.sendall(wire.chunks(wire.command("_result", 4, None, stream)))
        over.wait()

    with server(behave) as address:
        link = RtmpLink(address)
        try:
            with pytest.raises(wire.RtmpError, match="made no stream"):
                link.open()
        finally:
            link.close()


@pytest.mark.parametrize("behave", [silent, trickle, empty_chunks, pings_once_connected, reads_nothing_more])
async def test_a_sink_says_why_and_ends_whatever_the_server_does(behave: Behaviour) -> None:
    with server(behave) as address:
        changed = asyncio.Event()
        sink = RtmpSink(StreamOptions("", 25, 64, 64, 100_000, address), MonotonicClock(), changed.set)
        sink.start()
        grey = picture(90, 64)
        async with asyncio.timeout(NEVER_S):
            while sink.state.error is None:
                sink.offer_video(time.monotonic(), grey)
                if behave is reads_nothing_more and sink.state.connected:
                    break  # a push of next to nothing fits into the kernel's buffers
                await asyncio.sleep(0.02)
        assert "secret-key" not in (sink.state.error or "")
        async with asyncio.timeout(NEVER_S):
            await sink.aclose()
        assert sink._thread is not None
        await asyncio.to_thread(sink._thread.join, NEVER_S)
        assert not sink._thread.is_alive()
