"""The framed messages between the service and its worker processes.

A message is two unsigned 32-bit big-endian lengths (header, payload), the header as UTF-8 JSON object, and the payload. Either side
treats a message past the limits as a broken peer. Standard library only: the workers import this file.
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTHS = struct.Struct(">II")
HEADER_LIMIT = 256 * 1024
"""Bytes. A part of 120 characters has some hundred phonemes of 40 bytes; the list of voices has 20 KB."""
PAYLOAD_LIMIT = 8 * 1024 * 1024
"""Bytes: 90 s of speech at 48 kHz, several times what the longest part can be."""


class FramingError(Exception):
    """The peer sent what cannot be a message."""


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One message.

    Raises:
        FramingError: header or payload pass their limit.
    """
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    _check(len(head), len(payload))
    return LENGTHS.pack(len(head), len(payload)) + head + payload


def lengths(prefix: bytes) -> tuple[int, int]:
    """Lengths of header and payload from the first `LENGTHS.size` bytes.

    Raises:
        FramingError: they pass their limits.
    """
    head, payload = LENGTHS.unpack(prefix)
    _check(head, payload)
    return head, payload


def decode_header(head: bytes) -> dict[str, Any]:
    """The header's object.

    Raises:
        FramingError: not a JSON object.
    """
    try:
        value = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise FramingError("the header is not JSON") from error
    if not isinstance(value, dict):
        raise FramingError("the header is not an object")
    return value


def _check(head: int, payload: int) -> None:
    if head > HEADER_LIMIT or payload > PAYLOAD_LIMIT:
        raise FramingError(f"message of {head} + {payload} bytes, limits {HEADER_LIMIT} + {PAYLOAD_LIMIT}")
