"""RTMP on the wire: values, chunks in any portions, and what a hostile server may send."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.publishers.rtmp import protocol as wire
from musetalk_agent.publishers.rtmp.protocol import ChunkReader, FlvReader, RtmpError, RtmpMessage, chunks, pack, unpack


def test_values_come_back_as_they_were() -> None:
    values: list[wire.Amf] = ["connect", 1.0, {"app": "live", "fine": True, "nested": {"level": None}}, None, False]
    assert unpack(pack(*values)) == values


def test_a_known_connect_command_has_its_known_bytes() -> None:
    assert pack("connect", 1.0) == bytes.fromhex("020007636f6e6e656374" + "003ff0000000000000")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([wire.COMMAND, wire.AUDIO, wire.VIDEO, wire.DATA]),
            st.binary(max_size=3000),
            st.integers(0, 2**32 - 1),
        ),
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_messages_survive_chunks_of_any_size_in_any_portions(said: list[tuple[int, bytes, int]], seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([1, 128, 1000, 4096])
    messages = [RtmpMessage(kind, body, 1, time) for kind, body, time in said]
    begin = chunks(wire.control(wire.SET_CHUNK_SIZE, size))
    data = begin + b"".join(chunks(message, size) for message in messages)
    reader, got = ChunkReader(), []
    while data:
        portion = rng.randint(1, 700)
        got += list(reader.feed(data[:portion]))
        data = data[portion:]
    assert got[1:] == messages


def test_shorter_headers_go_on_from_those_before() -> None:
    first = (
        bytes([0x03]) + (1000).to_bytes(3, "big") + (2).to_bytes(3, "big") + bytes([9]) + struct.pack("<I", 1) + b"ab"
    )
    second = bytes([0x43]) + (40).to_bytes(3, "big") + (1).to_bytes(3, "big") + bytes([8]) + b"c"
    third = bytes([0x83]) + (20).to_bytes(3, "big") + b"d"
    fourth = bytes([0xC3]) + b"e"
    got = list(ChunkReader().feed(first + second + third + fourth))
    assert got == [
        RtmpMessage(9, b"ab", 1, 1000),
        RtmpMessage(8, b"c", 1, 1040),
        RtmpMessage(8, b"d", 1, 1060),
        RtmpMessage(8, b"e", 1, 1080),
    ]


def test_flv_tags_become_messages_and_metadata_is_marked() -> None:
    def tag(kind: int, time: int, body: bytes) -> bytes:
        head = bytes([kind]) + len(body).to_bytes(3, "big") + (time & 0xFFFFFF).to_bytes(3, "big") + bytes([time >> 24])
        return head + bytes(3) + body + (len(body) + 11).to_bytes(4, "big")

    data = (
        b"FLV\x01\x05\x00\x00\x00\x09" + bytes(4) + tag(18, 0, b"meta") + tag(9, 0x01234567, b"video") + tag(8, 40, b"")
    )
    reader, got = FlvReader(), []
    for index in range(len(data)):
        got += list(reader.feed(data[index : index + 1], 7))
    assert got == [
        RtmpMessage(18, pack("@setDataFrame") + b"meta", 7, 0),
        RtmpMessage(9, b"video", 7, 0x01234567),
        RtmpMessage(8, b"", 7, 40),
    ]


def test_a_message_that_is_too_long_and_too_many_channels_are_refused() -> None:
    long = bytes([0x03]) + bytes(3) + (1 << 20).to_bytes(3, "big") + bytes([9]) + bytes(4)
    with pytest.raises(RtmpError, match="1048576 bytes"):
        list(ChunkReader().feed(long))
    reader = ChunkReader()
    with pytest.raises(RtmpError, match="too many"):
        for number in range(70):
            list(
                reader.feed(
                    bytes([0, number]) + bytes(3) + (200).to_bytes(3, "big") + bytes([9]) + bytes(4) + bytes(128)
                )
            )


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        for message in ChunkReader().feed(data):
            unpack(message.body)
        unpack(data)
    except RtmpError:
        pass


def test_a_message_that_is_shortened_in_its_midst_is_refused() -> None:
    begun = bytes([0x03]) + bytes(3) + (200).to_bytes(3, "big") + bytes([9]) + bytes(4) + bytes(128)
    shorter = bytes([0x43]) + bytes(3) + (50).to_bytes(3, "big") + bytes([9]) + bytes(100)
    reader = ChunkReader()
    assert list(reader.feed(begun)) == []
    with pytest.raises(RtmpError, match="shortens"):
        list(reader.feed(shorter))


@st.composite
def hostile_chunks(draw: st.DrawFn) -> bytes:
    """Chunks whose headers contradict one another: a few channels, any form, sizes and times at their limits."""
    parts = []
    for _ in range(draw(st.integers(1, 12))):
        form, channel = draw(st.integers(0, 3)), draw(st.integers(2, 5))
        size = draw(st.sampled_from([0, 1, 4, 127, 128, 129, 300, 65_536, 65_537, 0xFFFFFF]))
        time = draw(st.sampled_from([0, 1, 0xFFFFFE, 0xFFFFFF]))
        kind = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 18, 20, 255]))
        head = time.to_bytes(3, "big") + size.to_bytes(3, "big") + bytes([kind]) + bytes(4)
        parts.append(bytes([form << 6 | channel]) + head[: (11, 7, 3, 0)[form]] + draw(st.binary(max_size=140)))
    return b"".join(parts)


@given(hostile_chunks(), st.integers(1, 200))
def test_contradicting_chunks_are_read_or_refused_and_no_byte_is_read_twice(data: bytes, portion: int) -> None:
    reader, count, size = ChunkReader(), 0, 0
    try:
        for at in range(0, len(data), portion):
            for message in reader.feed(data[at : at + portion]):
                count, size = count + 1, size + len(message.body)
                unpack(message.body)
    except RtmpError:
        pass
    assert count <= len(data) and size <= len(data)


@given(st.recursive(st.binary(max_size=8), lambda inner: st.lists(inner, max_size=4).map(b"".join), max_leaves=20))
def test_values_of_any_depth_are_read_or_refused(body: bytes) -> None:
    for nested in (body, b"\x03\x00\x01a" * 200 + body, b"\x08\xff\xff\xff\xff" + body, b"\x02\xff\xff" + body):
        try:
            unpack(nested)
        except RtmpError:
            pass


def test_small_pictures_are_padded_by_a_nal_unit_of_filler_and_nothing_else_is() -> None:
    slice_unit = (5).to_bytes(4, "big") + b"\x41aaaa"
    picture = RtmpMessage(wire.VIDEO, b"\x27\x01\x00\x00\x00" + slice_unit, 1, 40)
    padded = wire.padded(picture, 200)
    assert len(padded.body) == 200 and padded.body.startswith(picture.body) and padded.time_ms == 40
    filler = padded.body[len(picture.body) :]
    assert int.from_bytes(filler[:4], "big") == len(filler) - 4
    assert (filler[4], filler[5:-1], filler[-1]) == (12, b"\xff" * (len(filler) - 6), 0x80)
    configuration = RtmpMessage(wire.VIDEO, b"\x17\x00\x00\x00\x00avcC")
    large = RtmpMessage(wire.VIDEO, b"\x27\x01" + bytes(300))
    for other in (configuration, large, RtmpMessage(wire.AUDIO, b"\xaf\x01abc"), picture):
        assert wire.padded(other, 200 if other is not picture else 0) == other
