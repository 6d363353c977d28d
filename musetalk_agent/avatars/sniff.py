"""Tells what bytes are by looking at them; names and content types are not believed."""

from __future__ import annotations

from enum import StrEnum

SNIFF_BYTES = 512
"""As many leading bytes as `sniff` needs."""


class Kind(StrEnum):
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


PICTURES = frozenset({Kind.PNG, Kind.JPEG, Kind.WEBP, Kind.GIF, Kind.AVIF, Kind.HEIC})
VIDEOS = frozenset({Kind.MP4, Kind.WEBM, Kind.MPEG, Kind.MPEG_TS, Kind.AVI})
VIDEOS_UNREAD = frozenset({Kind.WMV, Kind.FLASH, Kind.OGG, Kind.MXF, Kind.AUDIO})
"""Containers that are known by name only."""

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", Kind.ZIP),
    (b"PK\x05\x06", Kind.ZIP),
    (b"\x89PNG\r\n\x1a\n", Kind.PNG),
    (b"\xff\xd8\xff", Kind.JPEG),
    (b"\x1a\x45\xdf\xa3", Kind.WEBM),
    (b"\x00\x00\x01\xba", Kind.MPEG),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind.WMV),
    (b"FLV\x01", Kind.FLASH),
    (b"OggS", Kind.OGG),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", Kind.MXF),
    (b"ID3", Kind.AUDIO),
    (b"fLaC", Kind.AUDIO),
    (b"GIF8", Kind.GIF),
    (b"II*\x00", Kind.TIFF),
    (b"MM\x00*", Kind.TIFF),
    (b"BM", Kind.BMP),
    (b"\x1f\x8b", Kind.TAR),
    (b"7z\xbc\xaf", Kind.TAR),
    (b"Rar!", Kind.TAR),
    (b"#EXTM3U", Kind.PLAYLIST),
    (b"ffconcat", Kind.PLAYLIST),
)
_RIFF = {b"WEBP": Kind.WEBP, b"AVI ": Kind.AVI, b"WAVE": Kind.AUDIO}
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""ISO/IEC 23008-12, annex B. `mif1` and `msf1` say nothing of the codec: an AVIF brand beside them does."""


def sniff(head: bytes) -> Kind:
    """What a file that begins with `head` (its first `SNIFF_BYTES`, or all of it) is."""
    if not head:
        return Kind.EMPTY
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if _transport_stream(head):
        return Kind.MPEG_TS
    if head[4:8] in _MP4_BOXES:
        return _boxed(head) if head[4:8] == b"ftyp" else Kind.MP4
    if head[257:262] == b"ustar":
        return Kind.TAR
    return _text(head)


def _transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes that begin with 0x47 (ISO/IEC 13818-1), or of 192 with a time stamp before each, as camcorders write."""
    return any(head[at : at + 2 * step + 1 : step] == b"GGG" for at, step in ((0, 188), (4, 192)))


def _boxed(head: bytes) -> Kind:
    """A picture or a video, by the brands of the file type box."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if head[8:12] not in _AVIF_BRANDS | _HEIC_BRANDS:
        return Kind.MP4
    return Kind.AVIF if brands & _AVIF_BRANDS else Kind.HEIC


def _text(head: bytes) -> Kind:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Kind.HTML
    if start.startswith((b"#extm3u", b"ffconcat", b"<mpd", b"<?xml")):
        return Kind.PLAYLIST if b"<mpd" in start or not start.startswith(b"<?xml") else Kind.TEXT
    control = sum(byte < 32 and byte not in b"\t\r\n\f\x1b" for byte in head)
    return Kind.TEXT if control == 0 else Kind.UNKNOWN
