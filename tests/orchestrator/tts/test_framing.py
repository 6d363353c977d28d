from __future__ import annotations

import struct

import pytest

from orchestrator.tts import framing


def test_a_message_survives_the_pipe() -> None:
    message = framing.encode({"voice": "piper:joe", "text": "Übung ✓"}, b"\x00\xff\x01")
    head, payload = framing.lengths(message[: framing.LENGTHS.size])
    body = message[framing.LENGTHS.size :]
    assert framing.decode_header(body[:head]) == {"voice": "piper:joe", "text": "Übung ✓"}
    assert body[head:] == b"\x00\xff\x01" and payload == 3


def test_golden_bytes() -> None:
    assert framing.encode({"a": 1}, b"xy") == b'\x00\x00\x00\x07\x00\x00\x00\x02{"a":1}xy'


def test_what_passes_the_limits_is_refused_before_it_is_read() -> None:
    with pytest.raises(framing.FramingError):
        framing.lengths(struct.pack(">II", framing.HEADER_LIMIT + 1, 0))
    with pytest.raises(framing.FramingError):
        framing.lengths(struct.pack(">II", 2, framing.PAYLOAD_LIMIT + 1))
    with pytest.raises(framing.FramingError):
        framing.encode({"text": "x" * framing.HEADER_LIMIT})


@pytest.mark.parametrize("head", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_a_header_that_is_no_object_is_refused(head: bytes) -> None:
    with pytest.raises(framing.FramingError):
        framing.decode_header(head)
