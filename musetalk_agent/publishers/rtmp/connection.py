"""A connection that publishes to an RTMP server: the blocking shell around `rtmp/protocol.py`, for a thread of its own.

The socket is ours, and not FFmpeg's: so it goes to the checked address while the certificate is checked against the name, it
holds little (what a server does not take shows at once), a silent network is noticed, and another thread can end it at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable

from musetalk_agent.publishers.rtmp import protocol as wire
from musetalk_agent.publishers.rtmp.address import RtmpAddress

CONNECT_S = 2.5
"""From the first SYN to "publish started"."""
STALL_S = 2.0
"""A server that takes nothing for so long, or a network that acknowledges nothing, is gone."""
SEND_BUFFER = 96 * 1024
"""Bytes the kernel holds (it doubles the number for its own use): half a second at 1.5 Mbit/s."""

_ACK_WINDOW = 8192
"""Bytes after which the server is asked to say that it has read them: when it hangs, its kernel still takes megabytes."""
_POLL_S = 0.1
_READ = 16_384
_SEND_S = 8.0
"""No message of ours takes longer than this to send: a server that takes some bytes now and then is of no use either."""
_MOST_BYTES, _MOST_MESSAGES = 65_536, 1000
"""What a server may send in a second. It has nothing to say to a publisher but acknowledgements (about 60 a second at 4 Mbit/s)
and pings; reading a flood would take a core from the sessions beside this one."""
_LEAST_WINDOW = 2500  # bytes; a server that wants acknowledgements more often does not get them
_FLASH = "FMLE/3.0 (compatible; musetalk-livekit)"


class RtmpLink:
    """One push. `abort` may be called from any thread; all else belongs to one thread.

    Args:
        address: where to, checked.
        attempt: which of the addresses to take, counted on over the attempts.
        least_frame_bytes: frames smaller than this are padded.
        tls: makes the context that checks certificates; only asked for rtmps.
    """

    def __init__(
        self,
        address: RtmpAddress,
        attempt: int = 0,
        least_frame_bytes: int = 0,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._address = address
        self._least_frame_bytes = least_frame_bytes
        self._ip = address.addresses[attempt % len(address.addresses)]
        self._tls = tls
        self._plain: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._reader = wire.ChunkReader()
        self._flv = wire.FlvReader()
        self._inbox: list[wire.RtmpMessage] = []
        self._stream = 0
        self._received = self._acknowledged = 0
        self._allowance = _Allowance()
        self._deadline: float | None = None  # of the whole of connecting, in whatever portions the server answers
        self._window = 2_500_000
        self._aborted = False
        self.broken = False
        self.sent = 0
        self._acks = 0
        self._acked = (0.0, 0)  # when the server last said that it read, and what was sent by then
        self._hung = False

    def open(self) -> None:
        """Connects and begins to publish. Raises OSError (with TimeoutError and ssl.SSLError) or RtmpError."""
        self._deadline = time.monotonic() + CONNECT_S
        family = socket.AF_INET6 if ":" in self._ip else socket.AF_INET
        self._plain = plain = socket.socket(family, socket.SOCK_STREAM)
        if self._aborted:
            raise ConnectionAbortedError(errno.ECONNABORTED, "ended on our side")
        plain.settimeout(CONNECT_S)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))
        plain.connect((self._ip, self._address.port))
        self._socket = plain
        plain.setblocking(False)
        if self._address.tls:
            self._encrypt(plain)
        self._shake_hands()
        self._begin()
        self._deadline = None

    def write(self, data: bytes) -> int:
        """Takes what an FLV muxer writes (the file it sees). After a failure it swallows everything, so that the muxer can end."""
        if not self.broken:
            try:
                for message in self._flv.feed(bytes(data), self._stream):
                    self._send(wire.chunks(wire.padded(message, self._least_frame_bytes)))
            except OSError:
                self.broken = True
                raise
        return len(data)

    def poll(self) -> None:
        """Answers what the server has said meanwhile. Raises OSError or RtmpError when the connection is over.

        A server that used to say that it reads, and does so no more, counts as gone.
        """
        self._receive()
        while self._inbox:
            for message in self._take():
                if message.kind == wire.COMMAND and _failure(message):
                    self.broken = True
                    raise wire.RtmpError(f"The server ended the stream: {_failure(message)}.")
        at, sent = self._acked
        if self._acks > 1 and self.sent - sent > 2 * _ACK_WINDOW and time.monotonic() - at > STALL_S:
            self.broken = self._hung = True
            raise TimeoutError(errno.ETIMEDOUT, "the server reads nothing")

    def pending(self) -> int:
        """Bytes that the other side has not taken: its kernel, or a server that hangs itself. 0 where that is unknown."""
        if self._hung:
            return self.sent - self._acked[1]
        if self._socket is None:
            return 0
        with contextlib.suppress(OSError, ValueError):
            (waiting,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)))
            return int(waiting)
        return 0

    def finish(self) -> None:
        """Sends FCUnpublish and deleteStream; best effort."""
        if self._socket is None or self.broken:
            return
        farewell = wire.command("FCUnpublish", 6, None, self._address.key)
        delete = wire.command("deleteStream", 7, None, float(self._stream))
        with contextlib.suppress(OSError):
            self._send(wire.chunks(farewell) + wire.chunks(delete), time.monotonic() + _POLL_S)

    def abort(self) -> None:
        """Makes whatever call is under way, or comes later, fail at once; from any thread, also before `open`."""
        self._aborted = True
        if (plain := self._plain) is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(
                    plain, socket.SHUT_RDWR
                )  # of a TLS socket too: its own would end the encryption only

    def close(self) -> None:
        """Frees the socket. Idempotent."""
        self.broken = True
        for one in (self._socket, self._plain):
            if one is not None:
                one.close()

    def _encrypt(self, plain: socket.socket) -> None:
        secure = self._tls().wrap_socket(plain, server_hostname=self._address.host, do_handshake_on_connect=False)
        self._socket = self._plain = secure  # the plain one has given its descriptor away
        while True:
            try:
                return secure.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(reading=True)
            except ssl.SSLWantWriteError:
                self._wait(reading=False)

    def _shake_hands(self) -> None:
        hello = b"\x03" + bytes(8) + os.urandom(wire.HANDSHAKE - 8)
        self._send(hello)
        answer = self._read_exactly(1 + 2 * wire.HANDSHAKE)
        if answer[0] != 3:
            raise wire.RtmpError("The server does not speak RTMP.")
        self._send(answer[1 : 1 + wire.HANDSHAKE])

    def _begin(self) -> None:
        address = self._address
        about = {"app": address.app, "type": "nonprivate", "flashVer": _FLASH, "tcUrl": address.tc_url}
        first = wire.control(wire.SET_CHUNK_SIZE, wire.CHUNK)
        self._send(wire.chunks(first) + wire.chunks(wire.command("connect", 1, dict(about))))
        self._answer(1)
        self._send(wire.chunks(wire.control(wire.WINDOW_SIZE, _ACK_WINDOW)))
        for number, name in ((2, "releaseStream"), (3, "FCPublish")):
            self._send(wire.chunks(wire.command(name, number, None, address.key)))
        self._send(wire.chunks(wire.command("createStream", 4, None)))
        values = self._answer(4)
        if len(values) < 4 or not isinstance(values[3], float) or not 0 <= values[3] < 1 << 32:  # NaN is neither
            raise wire.RtmpError("The server made no stream.")
        self._stream = int(values[3])
        publish = wire.command("publish", 5, None, address.key, "live", stream=self._stream)
        self._send(wire.chunks(publish))
        while True:
            message = self._next_command()
            if "NetStream.Publish.Start" in _codes(message):
                return

    def _answer(self, number: int) -> list[wire.Amf]:
        while True:
            values = wire.unpack(self._next_command().body)
            if values[:2] == ["_result", float(number)]:
                return values

    def _next_command(self) -> wire.RtmpMessage:
        """The next command that is no failure, save one of the courtesies that servers may not know."""
        while True:
            for message in self._take():
                if message.kind != wire.COMMAND:
                    continue
                if wire.unpack(message.body)[:2] not in (["_error", 2.0], ["_error", 3.0]) and _failure(message):
                    raise wire.RtmpError(f"The server refuses: {_failure(message)}.")
                return message
            self._wait(reading=True)
            self._receive()

    def _take(self) -> list[wire.RtmpMessage]:
        """Messages up to the first command, which stays for a later call when it is not the last."""
        taken: list[wire.RtmpMessage] = []
        while self._inbox and (not taken or taken[-1].kind != wire.COMMAND):
            taken.append(self._inbox.pop(0))
        for message in taken:
            number = int.from_bytes(message.body[:4], "big")
            if message.kind == wire.USER_CONTROL and int.from_bytes(message.body[:2], "big") == wire.PING_REQUEST:
                pong = wire.PING_RESPONSE.to_bytes(2, "big") + message.body[2:6]
                self._send(wire.chunks(wire.RtmpMessage(wire.USER_CONTROL, pong)))
            elif message.kind == wire.ACKNOWLEDGEMENT:
                self._acks, self._acked = self._acks + 1, (time.monotonic(), self.sent)
            elif message.kind == wire.WINDOW_SIZE and number:
                self._window = max(number, _LEAST_WINDOW)
            elif message.kind == wire.PEER_BANDWIDTH:
                self._send(wire.chunks(wire.control(wire.WINDOW_SIZE, number)))
        if self._received - self._acknowledged >= self._window // 2:
            self._acknowledged = self._received
            message = wire.control(wire.ACKNOWLEDGEMENT, self._received & 0xFFFFFFFF)
            self._send(wire.chunks(message))
        return taken

    def _receive(self) -> bool:
        """Reads what is there; returns whether there was anything. Raises RtmpError for a flood."""
        data = self._read(_READ)
        self._allowance.spend(len(data), 0)
        for message in self._reader.feed(data) if data else ():
            self._allowance.spend(0, 1)
            self._inbox.append(message)
        return bool(data)

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(reading=True)
            data += self._read(size - len(data))
        return data

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes; none when none are there yet."""
        assert self._socket is not None
        try:
            data = self._socket.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        if not data:
            self.broken = True
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        self._received += len(data)
        return data

    def _send(self, data: bytes, deadline: float | None = None) -> None:
        """Sends all of it by `deadline`, or that of connecting. Without one the server has to take a little of it every `STALL_S`,
        and all of it within `_SEND_S`.
        """
        assert self._socket is not None
        left = memoryview(data)
        latest = deadline or self._deadline
        last = latest or time.monotonic() + _SEND_S
        while left:
            try:
                sent = self._socket.send(left)
                self.sent += sent
                left = left[sent:]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(latest or min(last, time.monotonic() + STALL_S), reading=False)
            except ssl.SSLWantReadError:
                self._wait(latest or min(last, time.monotonic() + STALL_S), reading=True)

    def _wait(self, deadline: float | None = None, *, reading: bool) -> None:
        """Until the socket can be read or written. Raises TimeoutError after `deadline`, or that of connecting, also when it can:
        a server that answers a byte at a time gets no longer than one that says nothing.
        """
        assert self._socket is not None
        latest = deadline or self._deadline
        assert latest is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN if reading else select.POLLOUT)
        while True:
            left_s = latest - time.monotonic()
            if left_s < 0:
                self.broken = True
                raise TimeoutError(errno.ETIMEDOUT, f"the server {'says' if reading else 'takes'} too little in time")
            if self._aborted:
                raise ConnectionAbortedError(errno.ECONNABORTED, "ended on our side")
            if reading and isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
                return
            if poll.poll(1000 * min(_POLL_S, left_s)):
                return


class _Allowance:
    """Counts what the server sends within a second of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._bytes = self._messages = 0

    def spend(self, size: int, messages: int) -> None:
        """Raises RtmpError beyond `_MOST_BYTES` or `_MOST_MESSAGES` within a second."""
        now = self._clock()
        if now >= self._until:
            self._until, self._bytes, self._messages = now + 1, 0, 0
        self._bytes += size
        self._messages += messages
        if self._bytes > _MOST_BYTES or self._messages > _MOST_MESSAGES:
            raise wire.RtmpError("The server floods the connection, where it has hardly anything to say.")


def _codes(message: wire.RtmpMessage) -> list[str]:
    """Codes that a command's information objects carry. Descriptions are left alone: servers quote the stream key in them."""
    found = [value.get("code") for value in wire.unpack(message.body) if isinstance(value, dict)]
    return [code[:80] for code in found if isinstance(code, str)]


def _failure(message: wire.RtmpMessage) -> str | None:
    """Why a command reports a failure, or None."""
    values = wire.unpack(message.body)
    levels = [value.get("level") for value in values if isinstance(value, dict)]
    if values[:1] == ["_error"] or "error" in levels:
        return ", ".join(_codes(message)) or "error"
    return None
