"""Still pictures: their size from the header, before a single pixel is decoded, and the pixels themselves."""

from __future__ import annotations

import struct
from typing import cast

import cv2
import numpy as np

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sniff import PICTURES, SNIFF_BYTES, Kind, sniff
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media import Pixels

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_BACKGROUND = 255.0
"""Transparent pixels are laid on white, as a browser shows them."""


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
    alpha = pixels[:, :, 3:].astype(np.float32) / 255.0
    return cast("Pixels", np.rint(pixels[:, :, :3] * alpha + _BACKGROUND * (1.0 - alpha)).astype(np.uint8))


def _png(data: bytes) -> tuple[int, int] | None:
    length, name, width, height = struct.unpack_from(">I4sII", data, 8)
    return (width, height) if name == b"IHDR" and length == 13 else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_BARE:
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        at += length
    return None


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
