"""Still pictures: their size from the header, before a single pixel is decoded, and the pixels themselves."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sniff import PICTURES, SNIFF_BYTES, Kind, sniff
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media import Pixels

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_FILL = re.compile(rb"\xff+")
_JPEG_BEHIND_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The next marker behind coded data, which has FF 00 for a byte FF, and restart markers (T.81, B.1.1.5)."""
_JPEG_SEGMENTS_MAX = 10_000
_PNG_PACKED = frozenset({b"zTXt", b"iTXt", b"iCCP"})
_PNG_PACKED_MAX = 64
"""libpng unpacks each of these to at most 8 MB (PNG_USER_CHUNK_MALLOC_MAX), and keeps them."""
_PNG_CHUNKS_MAX = 200_000
_BACKGROUND = 255.0
"""Transparent pixels are laid on white, as a browser shows them."""
_ROWS = 64


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels that the header of a PNG, JPEG or WebP tells.

    Raises:
        AvatarUndecodable: it is none of these, or cut short.
    """
    kind = sniff(data[:SNIFF_BYTES])
    if kind not in PICTURES:
        raise AvatarUndecodable(
            f"{name!r} is not a PNG, JPEG or WebP picture: it looks like {kind.value}.", value=kind.value
        )
    try:
        size = {Kind.PNG: _png, Kind.JPEG: _jpeg, Kind.WEBP: _webp}[kind](data)
    except (struct.error, IndexError):
        size = None
    if size is None or min(size) < 1:
        raise AvatarUndecodable(f"{name!r} is {kind.value} whose header is damaged or cut short.")
    return size


def check_pixels(width: int, height: int, name: str, limits: AvatarLimits) -> None:
    """Refuses a picture or video frame by its size alone.

    Raises:
        AvatarTooLarge: more pixels than allowed.
        AvatarUndecodable: too few for a face.
    """
    if width * height > limits.picture_pixels:
        raise AvatarTooLarge(
            f"{name!r} is {width}×{height}; at most {limits.picture_pixels} pixels are allowed.",
            limit=limits.picture_pixels,
            value=width * height,
        )
    if min(width, height) < limits.side_pixels_min:
        raise AvatarUndecodable(
            f"{name!r} is {width}×{height}; each side must have at least {limits.side_pixels_min} pixels to show a face.",
            limit=limits.side_pixels_min,
            value=min(width, height),
        )


def check_structure(data: bytes, name: str, pixels: int, limits: AvatarLimits) -> None:
    """Refuses a picture of `pixels` pixels that costs far more to decode than its size says.

    Raises:
        AvatarTooLarge: a JPEG of too many scans.
        AvatarUndecodable: a PNG with too many packed texts.
    """
    kind = sniff(data[:SNIFF_BYTES])
    if kind is Kind.JPEG:
        try:
            scans = sum(marker == _JPEG_SCAN for marker, _ in _jpeg_segments(data))
        except struct.error as error:
            raise AvatarUndecodable(f"{name!r} is cut short: the end of the picture is missing.") from error
        limit = max(1, min(limits.jpeg_scans, limits.jpeg_scan_pixels // pixels))
        if scans > limit:
            raise AvatarTooLarge(
                f"{name!r} is a JPEG of more than {limit} scans, the most for its size; save it as a baseline JPEG.",
                limit=limit,
            )
    if kind is Kind.PNG and not _png_is_plain(data):
        raise AvatarUndecodable(
            f"{name!r} is a PNG of more than {_PNG_PACKED_MAX} packed texts or {_PNG_CHUNKS_MAX} chunks; save it without them.",
            limit=_PNG_PACKED_MAX,
        )


def _png_is_plain(data: bytes) -> bool:
    at, packed = 8, 0
    for _ in range(_PNG_CHUNKS_MAX):
        if at + 8 > len(data):
            return True
        length, kind = struct.unpack_from(">I4s", data, at)
        packed += kind in _PNG_PACKED
        if packed > _PNG_PACKED_MAX:
            return False
        if kind == b"IEND":
            return True
        at += 12 + length
    return False


def decode_picture(data: bytes, name: str) -> Pixels:
    """Pixels of a checked picture: uint8 BGR `[h, w, 3]`, upright, transparency laid on white.

    Raises:
        AvatarUndecodable: the pixels are damaged.
    """
    if not _complete(data):
        raise AvatarUndecodable(f"{name!r} is cut short: the end of the picture is missing.")
    try:
        flags = cv2.IMREAD_UNCHANGED if _has_alpha(data) else cv2.IMREAD_COLOR
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise AvatarUndecodable(f"{name!r} cannot be decoded: its pixels are damaged.") from error
    if pixels is None:
        raise AvatarUndecodable(f"{name!r} cannot be decoded: its pixels are damaged.")
    return _opaque(pixels)


def _opaque(pixels: np.ndarray) -> Pixels:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))
    if pixels.shape[2] == 3:
        return cast("Pixels", pixels)
    opaque = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), _ROWS):  # a few rows at a time: as float32 a whole picture takes 40 bytes a pixel
        rows = pixels[top : top + _ROWS]
        alpha = rows[:, :, 3:].astype(np.float32) / 255.0
        opaque[top : top + _ROWS] = np.rint(rows[:, :, :3] * alpha + _BACKGROUND * (1.0 - alpha)).astype(np.uint8)
    return cast("Pixels", opaque)


def _png(data: bytes) -> tuple[int, int] | None:
    length, name, width, height = struct.unpack_from(">I4sII", data, 8)
    return (width, height) if name == b"IHDR" and length == 13 else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker == _JPEG_SCAN:
            return None
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers of the segments of a JPEG and where their length stands; coded data is skipped. Ends at the picture's end, or where
    it is damaged."""
    at = 2
    for _ in range(_JPEG_SEGMENTS_MAX):
        start = _JPEG_FILL.match(data, at)
        if start is None or start.end() >= len(data):
            return
        marker, at = data[start.end()], start.end() + 1
        if marker in _JPEG_BARE:
            continue
        if marker == _JPEG_END:
            return
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            return
        yield marker, at
        at += length
        if marker == _JPEG_SCAN:
            behind = _JPEG_BEHIND_SCAN.search(data, at)
            if behind is None:
                return
            at = behind.start()


def _webp(data: bytes) -> tuple[int, int] | None:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _complete(data: bytes) -> bool:
    """OpenCV fills what a cut PNG or JPEG lacks with grey and calls it a picture, so look for the end marker."""
    kind = sniff(data[:SNIFF_BYTES])
    if kind is Kind.PNG:
        return b"IEND" in data[-4096:] or b"IEND" in data
    if kind is Kind.JPEG:
        return data.rfind(b"\xff\xd9") > 0
    return len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _has_alpha(data: bytes) -> bool:
    kind = sniff(data[:SNIFF_BYTES])
    if kind is Kind.PNG:
        return data[25] in (4, 6) or b"tRNS" in data[33:4096]
    if kind is Kind.WEBP:
        return (data[12:16] == b"VP8X" and bool(data[20] & 0x10)) or (data[12:16] == b"VP8L" and bool(data[24] & 0x10))
    return False
