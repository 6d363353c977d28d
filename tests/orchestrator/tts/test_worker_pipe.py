from __future__ import annotations

import struct

import pytest

from orchestrator import worker_pipe


def test_a_message_survives_the_pipe() -> None:
    message = worker_pipe.encode({"voice": "piper:joe", "text": "Übung ✓"}, b"\x00\xff\x01")
    head, payload = worker_pipe.lengths(message[: worker_pipe.LENGTHS.size])
    body = message[worker_pipe.LENGTHS.size :]
    assert worker_pipe.decode_header(body[:head]) == {"voice": "piper:joe", "text": "Übung ✓"}
    assert body[head:] == b"\x00\xff\x01" and payload == 3


def test_golden_bytes() -> None:
    assert worker_pipe.encode({"a": 1}, b"xy") == b'\x00\x00\x00\x07\x00\x00\x00\x02{"a":1}xy'


def test_what_passes_the_limits_is_refused_before_it_is_read() -> None:
    with pytest.raises(worker_pipe.FramingError):
        worker_pipe.lengths(struct.pack(">II", worker_pipe.HEADER_LIMIT + 1, 0))
    with pytest.raises(worker_pipe.FramingError):
        worker_pipe.lengths(struct.pack(">II", 2, worker_pipe.PAYLOAD_LIMIT + 1))
    with pytest.raises(worker_pipe.FramingError):
        worker_pipe.encode({"text": "x" * worker_pipe.HEADER_LIMIT})


@pytest.mark.parametrize("head", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_a_header_that_is_no_object_is_refused(head: bytes) -> None:
    with pytest.raises(worker_pipe.FramingError):
        worker_pipe.decode_header(head)
