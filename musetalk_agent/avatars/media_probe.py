"""What a file is, by its first bytes, and what decoding an image would cost, by its header: before anything is decoded.

Names and content types are not trusted.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable

SNIFF_BYTES = 512
"""As many leading bytes as `sniff` needs."""


class MediaKind(StrEnum):
    """What a file is, as it is named in a sentence."""

    ZIP = "a zip archive"
    PNG = "a PNG picture"
    JPEG = "a JPEG picture"
    WEBP = "a WebP picture"
    MP4 = "an MP4 or MOV video"
    WEBM = "a WebM or Matroska video"
    MPEG = "an MPEG program stream"
    MPEG_TS = "an MPEG transport stream"
    AVI = "an AVI video"
    WMV = "a Windows Media video"
    FLASH = "a Flash video"
    OGG = "an Ogg file"
    MXF = "an MXF video"
    AUDIO = "a sound file"
    HTML = "an HTML page"
    GIF = "a GIF picture"
    TIFF = "a TIFF picture"
    BMP = "a BMP picture"
    AVIF = "an AVIF picture"
    HEIC = "a HEIC picture"
    TAR = "a gzip, tar, 7z or RAR archive"
    PLAYLIST = "a streaming playlist"
    TEXT = "plain text"
    EMPTY = "an empty file"
    UNKNOWN = "a file of unknown format"


PICTURES = frozenset({MediaKind.PNG, MediaKind.JPEG, MediaKind.WEBP, MediaKind.GIF, MediaKind.AVIF, MediaKind.HEIC})
VIDEOS = frozenset({MediaKind.MP4, MediaKind.WEBM, MediaKind.MPEG, MediaKind.MPEG_TS, MediaKind.AVI})
VIDEOS_UNREAD = frozenset({MediaKind.WMV, MediaKind.FLASH, MediaKind.OGG, MediaKind.MXF, MediaKind.AUDIO})
"""Containers that are known by name only."""

_MAGIC: tuple[tuple[bytes, MediaKind], ...] = (
    (b"PK\x03\x04", MediaKind.ZIP),
    (b"PK\x05\x06", MediaKind.ZIP),
    (b"\x89PNG\r\n\x1a\n", MediaKind.PNG),
    (b"\xff\xd8\xff", MediaKind.JPEG),
    (b"\x1a\x45\xdf\xa3", MediaKind.WEBM),
    (b"\x00\x00\x01\xba", MediaKind.MPEG),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", MediaKind.WMV),
    (b"FLV\x01", MediaKind.FLASH),
    (b"OggS", MediaKind.OGG),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", MediaKind.MXF),
    (b"ID3", MediaKind.AUDIO),
    (b"fLaC", MediaKind.AUDIO),
    (b"GIF8", MediaKind.GIF),
    (b"II*\x00", MediaKind.TIFF),
    (b"MM\x00*", MediaKind.TIFF),
    (b"BM", MediaKind.BMP),
    (b"\x1f\x8b", MediaKind.TAR),
    (b"7z\xbc\xaf", MediaKind.TAR),
    (b"Rar!", MediaKind.TAR),
    (b"#EXTM3U", MediaKind.PLAYLIST),
    (b"ffconcat", MediaKind.PLAYLIST),
)
_RIFF = {b"WEBP": MediaKind.WEBP, b"AVI ": MediaKind.AVI, b"WAVE": MediaKind.AUDIO}
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""ISO/IEC 23008-12, annex B. `mif1` and `msf1` say nothing of the codec: an AVIF brand beside them does."""


def sniff(head: bytes) -> MediaKind:
    """What a file that begins with `head` (its first `SNIFF_BYTES`, or all of it) is."""
    if not head:
        return MediaKind.EMPTY
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if _transport_stream(head):
        return MediaKind.MPEG_TS
    if head[4:8] in _MP4_BOXES:
        return _boxed(head) if head[4:8] == b"ftyp" else MediaKind.MP4
    if head[257:262] == b"ustar":
        return MediaKind.TAR
    return _text(head)


def sniff_file(path: Path) -> MediaKind:
    """What a file is. Raises OSError."""
    with path.open("rb") as file:
        return sniff(file.read(SNIFF_BYTES))


def _transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes that begin with 0x47 (ISO/IEC 13818-1), or of 192 with a time stamp before each, as camcorders write."""
    return any(head[at : at + 2 * step + 1 : step] == b"GGG" for at, step in ((0, 188), (4, 192)))


def _boxed(head: bytes) -> MediaKind:
    """An image or a video, by the brands of the file type box."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if head[8:12] not in _AVIF_BRANDS | _HEIC_BRANDS:
        return MediaKind.MP4
    return MediaKind.AVIF if brands & _AVIF_BRANDS else MediaKind.HEIC


def _text(head: bytes) -> MediaKind:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return MediaKind.HTML
    if start.startswith((b"#extm3u", b"ffconcat", b"<mpd", b"<?xml")):
        return MediaKind.PLAYLIST if b"<mpd" in start or not start.startswith(b"<?xml") else MediaKind.TEXT
    control = sum(byte < 32 and byte not in b"\t\r\n\f\x1b" for byte in head)
    return MediaKind.TEXT if control == 0 else MediaKind.UNKNOWN


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
_BYTES_A_PIXEL = {
    MediaKind.PNG: 4.0,
    MediaKind.JPEG: 4.0,
    MediaKind.WEBP: 13.0,
    MediaKind.GIF: 13.0,
    MediaKind.AVIF: 13.0,
    MediaKind.HEIC: 4.4,
}
"""Memory that decoding takes for a pixel, before scaling: Pillow keeps four bytes for one, libwebp's animation decoder two
canvases of four beside them, libavif and libheif their planes and an RGB copy. HEIC was measured at 4.8, the rest of which
`decoder_bytes` covers, so that the 48 million pixels of a phone fit."""
_ANIMATED_BYTES_A_PIXEL = 13.0
"""The same of an animation of any kind: the frame, the one before and what is put back in place of it."""
_JPEG_DRAFTS = (8, 4, 2)
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_COEFFICIENT_BYTES = 2
_WEBP_EXTENDED_BYTES = 30
"""Of a WebP with an extended header, up to the end of its size (RFC 9649, 2.7)."""


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """What decoding an image takes. `draft` is the factor by which libjpeg scales it down as it is decoded, 1 for none."""

    bytes: int
    draft: int = 1


def picture_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Width and height in pixels in the header of a PNG, JPEG, WebP or GIF; None for AVIF and HEIC, whose boxes a library
    reads. `data` may be the file's beginning.

    Raises:
        AvatarUndecodable: it is no image, or cut short.
    """
    kind = picture_kind(data, name)
    if kind in (MediaKind.AVIF, MediaKind.HEIC):
        return None
    try:
        size = {MediaKind.PNG: _png, MediaKind.JPEG: _jpeg, MediaKind.WEBP: _webp, MediaKind.GIF: _gif}[kind](data)
    except (struct.error, IndexError):
        size = None
    if size is None or min(size) < 1:
        raise AvatarUndecodable(f"{name!r} is {kind.value} whose header is damaged or cut short.")
    return size


def picture_kind(data: bytes, name: str) -> MediaKind:
    """Which image it is. Raises AvatarUndecodable when it is none."""
    kind = sniff(data[:SNIFF_BYTES])
    if kind not in PICTURES:
        raise AvatarUndecodable(
            f"{name!r} is not a PNG, JPEG, WebP, GIF, AVIF or HEIC picture: it looks like {kind.value}; save it as a PNG or JPEG.",
            value=kind.value,
        )
    return kind


def check_pixels(width: int, height: int, name: str, limits: AvatarLimits, most: int | None = None) -> None:
    """Refuses an image or video frame by its size alone.

    Raises:
        AvatarTooLarge: more pixels than `most`, or than the limit for frames.
        AvatarUndecodable: too few for a face.
    """
    most = limits.picture_pixels if most is None else most
    if width * height > most:
        raise AvatarTooLarge(
            f"{name!r} is {width}×{height}; at most {most} pixels are allowed. Scale it down.",
            limit=most,
            value=width * height,
        )
    if min(width, height) < limits.side_pixels_min:
        raise AvatarUndecodable(
            f"{name!r} is {width}×{height}; each side must have at least {limits.side_pixels_min} pixels to show a face.",
            limit=limits.side_pixels_min,
            value=min(width, height),
        )


def animation_cost(kind: MediaKind, size: tuple[int, int], name: str, limits: AvatarLimits) -> DecodeCost:
    """What it costs to decode an animated image of `size` (width, height).

    Raises:
        AvatarTooLarge: more than the limits allow.
        AvatarUndecodable: too few pixels for a face.
    """
    check_pixels(*size, name, limits)
    return _within(
        DecodeCost(int(_ANIMATED_BYTES_A_PIXEL * size[0] * size[1])), kind, size, name, limits.still_bytes, ""
    )


def still_cost(
    data: bytes, kind: MediaKind, size: tuple[int, int], least: tuple[int, int], name: str, bytes_most: int
) -> DecodeCost:
    """What it costs to decode an image of `size` (width, height) that is scaled down to `least` afterwards.

    Raises:
        AvatarTooLarge: more than `bytes_most` bytes.
    """
    pixels, draft, extra = size[0] * size[1], 1, 0
    if kind is MediaKind.JPEG:
        draft = next((f for f in _JPEG_DRAFTS if size[0] // f >= least[0] and size[1] // f >= least[1]), 1)
        extra = _coefficient_bytes(data, pixels)
    cost = DecodeCost(int(_BYTES_A_PIXEL[kind] * pixels / draft**2) + extra, draft)
    how = "" if kind is MediaKind.JPEG and not extra else "save it as a baseline JPEG, or "
    return _within(cost, kind, size, name, bytes_most, how)


def _within(
    cost: DecodeCost, kind: MediaKind, size: tuple[int, int], name: str, bytes_most: int, how: str
) -> DecodeCost:
    if cost.bytes > bytes_most:
        pixels = size[0] * size[1]
        most = int(bytes_most / cost.bytes * pixels)
        raise AvatarTooLarge(
            f"{name!r} is {kind.value} of {size[0]}×{size[1]}, which would take more memory than is given to one; {how}scale it "
            f"down to {most} pixels.",
            limit=most,
            value=pixels,
        )
    return cost


def _coefficient_bytes(data: bytes, pixels: int) -> int:
    """Memory for the coefficients of a progressive JPEG, all of which libjpeg keeps; 0 for a baseline one."""
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            if marker not in _JPEG_PROGRESSIVE:
                return 0
            factors = [(byte >> 4, byte & 15) for byte in data[at + 9 : at + 8 + 3 * data[at + 7] : 3]]
            most = max((h for h, _ in factors), default=1) * max((v for _, v in factors), default=1)
            return int(_COEFFICIENT_BYTES * pixels * sum(h * v for h, v in factors) / max(1, most))
    return 0


def check_structure(data: bytes, name: str, pixels: int, limits: AvatarLimits) -> None:
    """Refuses an image of `pixels` pixels that costs far more to decode than its size says.

    Raises:
        AvatarTooLarge: a JPEG of too many scans.
        AvatarUndecodable: a PNG with too many packed texts, or whose pixels are damaged.
    """
    kind = sniff(data[:SNIFF_BYTES])
    if kind is MediaKind.JPEG:
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
    if kind is MediaKind.PNG:
        _check_png(data, name)


def _check_png(data: bytes, name: str) -> None:
    """Pillow does not look at the checksums of pixels, nor for the end."""
    at, packed = 8, 0
    for _ in range(_PNG_CHUNKS_MAX):
        if at + 12 > len(data):
            raise AvatarUndecodable(f"{name!r} is cut short: the end of the picture is missing.")
        length, kind = struct.unpack_from(">I4s", data, at)
        packed += kind in _PNG_PACKED
        if packed > _PNG_PACKED_MAX:
            break
        if kind == b"IEND":
            return
        if kind == b"IDAT" and data[at + 8 + length : at + 12 + length] != struct.pack(
            ">I", zlib.crc32(memoryview(data)[at + 4 : at + 8 + length])
        ):
            raise AvatarUndecodable(f"{name!r} cannot be decoded: its pixels are damaged or cut short.")
        at += 12 + length
    raise AvatarUndecodable(
        f"{name!r} is a PNG of more than {_PNG_PACKED_MAX} packed texts or {_PNG_CHUNKS_MAX} chunks; save it without them.",
        limit=_PNG_PACKED_MAX,
    )


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
    """Markers of the segments of a JPEG and where their length stands; coded data is skipped. Ends at the image's end, or where
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


def _gif(data: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= _WEBP_EXTENDED_BYTES:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
