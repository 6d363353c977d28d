"""RTMP on the wire, without a socket: AMF0 values, messages cut into chunks and put together again, and FLV tags.

Only what a publisher needs. Bytes of the server are hostile until shown otherwise: lengths, chunk streams and nesting are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

Amf = float | bool | str | None | dict[str, "Amf"]

SET_CHUNK_SIZE, ACKNOWLEDGEMENT, USER_CONTROL, WINDOW_SIZE, PEER_BANDWIDTH = 1, 3, 4, 5, 6
AUDIO, VIDEO, DATA, COMMAND = 8, 9, 18, 20
PING_REQUEST, PING_RESPONSE = 6, 7
HANDSHAKE = 1536
CHUNK = 60_000
"""Bytes a chunk of ours may have; most messages are one."""

_FIRST_CHUNK = 128  # what both sides begin with, by the specification
_LONG = 0xFFFFFF  # a time stamp of more needs four bytes of its own
_CHANNEL = {COMMAND: 3, AUDIO: 4, DATA: 5, VIDEO: 6}
_CONTROL_CHANNEL = 2
_MAX_MESSAGE = 64 * 1024
_MAX_CHANNELS = 64
_MAX_DEPTH = 8
_FLV_HEADER = 13
_FLV_TAG = 11
_FLV_TRAILER = 4


class RtmpError(Exception):
    """The server said something that is no RTMP, or refused. The text never has the stream key."""


@dataclass(frozen=True, slots=True)
class RtmpMessage:
    """A message: its kind, body, stream (0 for the connection itself) and time stamp in milliseconds."""

    kind: int
    body: bytes
    stream: int = 0
    time_ms: int = 0


def padded(message: RtmpMessage, size: int) -> RtmpMessage:
    """A frame (H.264 in FLV) of at least `size` bytes: a NAL unit of filler follows it, which decoders throw away."""
    missing = size - len(message.body) - 6
    if message.kind != VIDEO or missing < 0 or message.body[1:2] != b"\x01":  # 0 there: the decoder's configuration
        return message
    filler = b"\x0c" + b"\xff" * missing + b"\x80"
    return replace(message, body=message.body + len(filler).to_bytes(4, "big") + filler)


def pack(*values: Amf) -> bytes:
    """AMF0 of some values."""
    return b"".join(_pack(value) for value in values)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def _pack(value: Amf) -> bytes:
    if value is None:
        return b"\x05"
    if isinstance(value, bool):
        return b"\x01\x01" if value else b"\x01\x00"
    if isinstance(value, str):
        return b"\x02" + _text(value)
    if isinstance(value, Mapping):
        return b"\x03" + b"".join(_text(key) + _pack(one) for key, one in value.items()) + b"\x00\x00\x09"
    return b"\x00" + struct.pack(">d", value)


def unpack(body: bytes) -> list[Amf]:
    """The AMF0 values in `body`, up to the first of a kind that no publisher needs. Raises `RtmpError`."""
    values: list[Amf] = []
    at = 0
    try:
        while at < len(body):
            value, at = _unpack(body, at, 0)
            values.append(value)
    except _Unknown:
        pass
    except (struct.error, IndexError) as error:
        raise RtmpError("The server's answer is cut off.") from error
    return values


class _Unknown(Exception):
    """A kind of value that is not read."""


def _unpack(body: bytes, at: int, depth: int) -> tuple[Amf, int]:
    kind = body[at]
    at += 1
    if kind == 0:
        return struct.unpack_from(">d", body, at)[0], at + 8
    if kind == 1:
        return body[at] != 0, at + 1
    if kind == 2:
        return _name(body, at)
    if kind in (5, 6):
        return None, at
    if kind in (3, 8) and depth < _MAX_DEPTH:
        at += 4 if kind == 8 else 0
        fields: dict[str, Amf] = {}
        while body[at : at + 3] != b"\x00\x00\x09":
            name, at = _name(body, at)
            fields[name], at = _unpack(body, at, depth + 1)
        return fields, at + 3
    raise _Unknown


def _name(body: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from(">H", body, at)
    if at + 2 + size > len(body):
        raise IndexError
    return body[at + 2 : at + 2 + size].decode("utf-8", "replace"), at + 2 + size


def command(name: str, number: int, *values: Amf, stream: int = 0) -> RtmpMessage:
    """A command with its transaction number."""
    return RtmpMessage(COMMAND, pack(name, float(number), *values), stream)


def control(kind: int, value: int) -> RtmpMessage:
    """A message of the protocol itself with one number of 32 bits."""
    return RtmpMessage(kind, struct.pack(">I", value))


def chunks(message: RtmpMessage, size: int = CHUNK) -> bytes:
    """The message as chunks of up to `size` bytes, each with the time stamp in full: no state is needed."""
    channel = _CHANNEL.get(message.kind, _CONTROL_CHANNEL)
    time = message.time_ms & 0xFFFFFFFF
    more = struct.pack(">I", time) if time >= _LONG else b""
    head = struct.pack(">B", channel) + min(time, _LONG).to_bytes(3, "big") + len(message.body).to_bytes(3, "big")
    parts = [head, struct.pack(">B", message.kind), struct.pack("<I", message.stream), more, message.body[:size]]
    again = struct.pack(">B", 0xC0 | channel) + more
    for at in range(size, len(message.body), size):
        parts += (again, message.body[at : at + size])
    return b"".join(parts)


@dataclass(slots=True)
class _Channel:
    """What a chunk stream's shorter headers refer to."""

    time_ms: int = 0
    step_ms: int = 0
    size: int = 0
    kind: int = 0
    stream: int = 0
    long: bool = False
    body: bytearray = field(default_factory=bytearray)


class ChunkReader:
    """Puts the server's chunks together again: `feed` bytes as they come, get whole messages.

    Holds at most `_MAX_MESSAGE` bytes for each of `_MAX_CHANNELS` chunk streams, and one chunk that is not complete.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._channels: dict[int, _Channel] = {}
        self._size = _FIRST_CHUNK

    def feed(self, data: bytes) -> Iterator[RtmpMessage]:
        """The complete messages. Raises `RtmpError` for bytes that are not RTMP. Read it to its end before the next call."""
        data = self._rest + data
        at = 0
        while True:
            try:
                at, message = self._chunk(data, at)
            except (IndexError, struct.error):
                self._rest = data[at:]  # not all of the chunk is here
                return
            if message is None:
                continue
            if message.kind == SET_CHUNK_SIZE and len(message.body) == 4:
                self._size = min(max(1, int.from_bytes(message.body, "big") & 0x7FFFFFFF), _MAX_MESSAGE)
            yield message

    def _chunk(self, data: bytes, at: int) -> tuple[int, RtmpMessage | None]:
        """The chunk at `at`: where it ends, and the message that it completes. Raises IndexError when it is not all there."""
        first = data[at]
        form, number = first >> 6, first & 0x3F
        at += 1
        if number < 2:
            number = 64 + data[at] + (data[at + 1] << 8 if number else 0)
            at += 1 + (first & 1)
        known = self._channels.get(number)
        if known is None and len(self._channels) >= _MAX_CHANNELS:
            raise RtmpError("The server opens too many chunk streams.")
        channel, at = self._header(data, at, form, known or _Channel())
        part = min(self._size, channel.size - len(channel.body))
        if at + part > len(data):
            raise IndexError
        channel.body += data[at : at + part]
        self._channels[number] = channel
        if len(channel.body) < channel.size:
            return at + part, None
        message = RtmpMessage(channel.kind, bytes(channel.body), channel.stream, channel.time_ms)
        channel.body = bytearray()
        return at + part, message

    @staticmethod
    def _header(data: bytes, at: int, form: int, old: _Channel) -> tuple[_Channel, int]:
        """The channel as this chunk's header makes it: a copy, as the chunk may not be all here yet; the body is the same."""
        new = _Channel(old.time_ms, old.step_ms, old.size, old.kind, old.stream, old.long, old.body)
        length = (11, 7, 3, 0)[form]
        head = data[at : at + length]
        if len(head) < length:
            raise IndexError
        at += length
        step = int.from_bytes(head[:3], "big")
        if form < 3:
            new.long = step == _LONG
        if form < 2:
            new.size, new.kind = int.from_bytes(head[3:6], "big"), head[6]
        if form == 0:
            (new.stream,) = struct.unpack("<I", head[7:11])
        if new.size > _MAX_MESSAGE:
            raise RtmpError(f"The server sends a message of {new.size} bytes.")
        if new.size < len(new.body):
            raise RtmpError("The server shortens a message that it has begun.")
        if new.long:
            (step,) = struct.unpack_from(">I", data, at)
            at += 4
        if form < 3:
            new.step_ms = step
        if not new.body:
            new.time_ms = step if form == 0 else old.time_ms + new.step_ms
        return new, at


class FlvReader:
    """Takes apart what an FLV muxer writes: every tag is the body of one RTMP message."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = _FLV_HEADER

    def feed(self, data: bytes, stream: int) -> Iterator[RtmpMessage]:
        """Messages for the message stream `stream` that are complete now."""
        self._buffer += data
        while True:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            if len(self._buffer) < _FLV_TAG:
                return
            size = int.from_bytes(self._buffer[1:4], "big")
            if len(self._buffer) < _FLV_TAG + size:
                return
            time_ms = int.from_bytes(self._buffer[4:7], "big") | self._buffer[7] << 24
            body = bytes(self._buffer[_FLV_TAG : _FLV_TAG + size])
            kind = self._buffer[0]
            yield RtmpMessage(kind, pack("@setDataFrame") + body if kind == DATA else body, stream, time_ms)
            del self._buffer[: _FLV_TAG + size]
            self._skip = _FLV_TRAILER
