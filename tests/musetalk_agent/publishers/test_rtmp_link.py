"""One RTMP connection, step by step, against servers that a test writes."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_agent.publishers.rtmp import protocol as wire
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.rtmp.connection import RtmpLink
from tests.musetalk_agent.publishers.test_rtmp_hostile import accept_publish, handshake, server, silent
from tests.waiting import NEVER_S, wait_until

NOWHERE = RtmpAddress("rtmp", "127.0.0.1", 9, "app", "secret-key", ("127.0.0.1",))


def received(connection: socket.socket, until: bytes) -> bytes:
    """What the publisher sends, up to these bytes."""
    connection.settimeout(NEVER_S)
    data = b""
    while until not in data:
        data += connection.recv(65_536)
    return data


def test_a_link_that_was_ended_before_it_began_connects_to_nothing() -> None:
    link = RtmpLink(NOWHERE)
    link.abort()
    with pytest.raises(ConnectionAbortedError, match="ended on our side"):
        link.open()
    assert link.sent == 0 and link.pending() == 0
    link.close()
    link.close()


def test_a_goodbye_without_a_connection_says_nothing() -> None:
    link = RtmpLink(NOWHERE)
    link.finish()
    link.close()
    link.finish()
    assert link.sent == 0


def test_a_wait_ends_when_another_thread_ends_the_link() -> None:
    with server(silent) as address:
        link = RtmpLink(address)
        ended: list[BaseException] = []

        def work() -> None:
            try:
                link.open()
            except OSError as error:
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: link.sent)  # its half of the handshake
        link.abort()
        thread.join(NEVER_S)
        link.close()
    assert len(ended) == 1 and isinstance(ended[0], ConnectionError) and not isinstance(ended[0], TimeoutError)


def test_a_link_that_is_ended_between_sending_and_waiting_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(silent) as address:
        link = RtmpLink(address)
        monkeypatch.setattr(link, "_send", lambda data: link.abort())
        with pytest.raises(ConnectionAbortedError, match="ended on our side"):
            link.open()
        link.close()


def test_a_server_of_another_protocol_is_named() -> None:
    def http(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1537)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" + bytes(2 * wire.HANDSHAKE))
        over.wait()

    with server(http) as address:
        link = RtmpLink(address)
        try:
            with pytest.raises(wire.RtmpError, match="does not speak RTMP"):
                link.open()
        finally:
            link.close()


def test_other_news_before_the_start_is_passed_over_and_a_failure_after_it_ends_the_push() -> None:
    def behave(connection: socket.socket, over: threading.Event) -> None:
        handshake(connection)
        connection.sendall(wire.chunks(wire.command("_result", 1, None)))
        connection.sendall(wire.chunks(wire.command("_result", 4, None, 1.0)))
        for code in ("NetStream.Publish.Waiting", "NetStream.Publish.Start"):
            connection.sendall(wire.chunks(wire.command("onStatus", 0, None, {"code": code})))
        goodbye = {"level": "error", "code": "NetStream.Publish.Denied", "description": "the key is secret-key"}
        going.wait(NEVER_S)
        connection.sendall(wire.chunks(wire.command("onStatus", 0, None, goodbye)))
        over.wait()

    going = threading.Event()
    with server(behave) as address:
        link = RtmpLink(address)
        try:
            link.open()
            link.poll()
            assert not link.broken
            going.set()

            def poll() -> wire.RtmpError | None:
                try:
                    link.poll()
                except wire.RtmpError as error:
                    return error
                return None

            error = wait_until(poll)
            assert str(error) == "The server ended the stream: NetStream.Publish.Denied."
            assert link.broken and link.write(b"FLV") == 3, "what comes after is swallowed"
            sent = link.sent
            link.finish()
            assert link.sent == sent
        finally:
            link.close()


def test_a_server_that_wants_to_hear_what_was_read_hears_it() -> None:
    """After half its window: here 3,000 bytes, of which the handshake alone is more."""
    heard: list[bytes] = []

    def behave(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1537)
        connection.sendall(b"\x03" + os.urandom(2 * wire.HANDSHAKE))
        connection.sendall(wire.chunks(wire.control(wire.WINDOW_SIZE, 3000)))
        connection.sendall(wire.chunks(wire.command("_result", 1, None)))
        heard.append(received(connection, b"createStream"))
        over.wait()

    with server(behave) as address:
        link = RtmpLink(address)
        opening = threading.Thread(target=lambda: _quietly(link))
        opening.start()
        wait_until(lambda: heard)
        link.abort()
        opening.join(NEVER_S)
        acknowledged = link._acknowledged
        link.close()
    assert acknowledged > 1 + 2 * wire.HANDSHAKE
    assert wire.chunks(wire.control(wire.ACKNOWLEDGEMENT, acknowledged)) in heard[0]


def _quietly(link: RtmpLink) -> None:
    try:
        link.open()
    except OSError:
        pass


def test_what_tls_has_read_already_is_not_waited_for(tmp_path: Path) -> None:
    """All that the server says comes in one record, of which the handshake is a part: the socket never becomes readable again."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stream.test", "-addext", "subjectAltName=DNS:stream.test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def behave(connection: socket.socket, over: threading.Event) -> None:
        connection.settimeout(NEVER_S)
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1537)
            said = b"\x03" + os.urandom(2 * wire.HANDSHAKE)
            said += wire.chunks(wire.command("_result", 1, None)) + wire.chunks(wire.command("_result", 4, None, 1.0))
            said += wire.chunks(wire.command("onStatus", 0, None, {"code": "NetStream.Publish.Start"}))
            secure.sendall(said)
            over.wait()

    with server(behave) as address:
        secure = replace(address, scheme="rtmps", host="stream.test")
        link = RtmpLink(secure, tls=lambda: ssl.create_default_context(cafile=str(certificate)))
        try:
            link.open()
            assert link._stream == 1 and not link.broken
        finally:
            link.abort()
            link.close()


def test_a_push_that_is_taken_says_goodbye_with_its_key() -> None:
    heard: list[bytes] = []

    def behave(connection: socket.socket, over: threading.Event) -> None:
        accept_publish(connection)
        heard.append(received(connection, b"deleteStream"))

    with server(behave) as address:
        link = RtmpLink(address)
        try:
            link.open()
            link.finish()
            wait_until(lambda: heard)
        finally:
            link.close()
    assert b"FCUnpublish" in heard[0] and b"secret-key" in heard[0]
