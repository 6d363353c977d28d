"""What bytes are taken to be, whatever they are: whole files, their beginnings, and files with bytes changed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import (
    PICTURES,
    SNIFF_BYTES,
    VIDEOS,
    VIDEOS_UNREAD,
    MediaKind,
    check_structure,
    picture_kind,
    picture_size,
    sniff,
    still_cost,
)
from musetalk_agent.errors import AvatarError, AvatarUndecodable
from tests.musetalk_agent.avatars.clips import archive, encoded, noise, video
from tests.musetalk_agent.avatars.made_pictures import saved

PICTURE = noise(96, 72)
PNG, JPEG, WEBP = encoded(PICTURE), encoded(PICTURE, ".jpg"), encoded(PICTURE, ".webp")
_RGB = Image.fromarray(PICTURE)
WEBP_LOSSLESS = saved(_RGB, "WEBP", lossless=True)
WEBP_ALPHA = saved(_RGB.convert("RGBA").rotate(10), "WEBP")
GIF = saved(_RGB.convert("P"), "GIF")
PROGRESSIVE = saved(_RGB, "JPEG", progressive=True)
AVIF = saved(_RGB, "AVIF")


def boxed(*brands: bytes) -> bytes:
    """A file type box of these brands, the first of them the major one, and a box behind it."""
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I4s", 8 + len(body), b"ftyp") + body + struct.pack(">I4s", 8, b"mdat")


def packets(step: int, at: int) -> bytes:
    """A transport stream of packets `step` bytes apart, the first of which begins at `at`."""
    out = bytearray(at + 4 * step)
    out[at::step] = b"G" * 4
    return bytes(out)


FILES: dict[str, tuple[bytes, MediaKind, int]] = {
    # what it is, and from how many bytes on it is known
    "zip": (archive([("a.png", PNG)]), MediaKind.ZIP, 4),
    "empty zip": (b"PK\x05\x06" + bytes(18), MediaKind.ZIP, 4),
    "png": (PNG, MediaKind.PNG, 8),
    "jpeg": (JPEG, MediaKind.JPEG, 3),
    "webp": (WEBP, MediaKind.WEBP, 12),
    "gif": (GIF, MediaKind.GIF, 4),
    "avif": (AVIF, MediaKind.AVIF, 12),
    "heic": (boxed(b"heic", b"mif1", b"heic"), MediaKind.HEIC, 12),
    "mp4": (video([PICTURE]), MediaKind.MP4, 8),
    "quicktime of old": (struct.pack(">I4s", 8, b"wide") + struct.pack(">I4s", 8, b"mdat"), MediaKind.MP4, 8),
    "webm": (video([PICTURE], container="webm", codec="libvpx"), MediaKind.WEBM, 4),
    "mpeg": (video([PICTURE] * 2, container="mpeg", codec="mpeg1video"), MediaKind.MPEG, 4),
    "mpeg-ts": (video([PICTURE] * 2, container="mpegts"), MediaKind.MPEG_TS, 377),
    "m2ts": (packets(192, 4), MediaKind.MPEG_TS, 389),
    "avi": (video([PICTURE], container="avi"), MediaKind.AVI, 12),
    "flv": (b"FLV\x01\x05\x00\x00\x00\x09", MediaKind.FLASH, 4),
    "wmv": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), MediaKind.WMV, 8),
    "ogg": (b"OggS\x00\x02" + bytes(22), MediaKind.OGG, 4),
    "wave": (b"RIFF\x24\x00\x00\x00WAVEfmt ", MediaKind.AUDIO, 12),
    "flac": (b"fLaC\x00\x00\x00\x22", MediaKind.AUDIO, 4),
    "tiff": (b"MM\x00*\x00\x00\x00\x08", MediaKind.TIFF, 4),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(255), MediaKind.TAR, 262),
    "gzip": (b"\x1f\x8b\x08\x00", MediaKind.TAR, 2),
    "page": (b"\n <!DOCTYPE HTML><html></html>", MediaKind.HTML, 16),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\na.ts\n", MediaKind.PLAYLIST, 7),
    "manifest": (b"<?xml version='1.0'?>\n<MPD type='static'>", MediaKind.PLAYLIST, 26),
    "text": (b"frame 1\nframe 2\n", MediaKind.TEXT, 1),
}
ANY_FILE = st.sampled_from(sorted(FILES))
LIMITS = AvatarLimits()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_known_by_its_beginning_and_by_nothing_behind_it(name: str) -> None:
    data, kind, least = FILES[name]
    assert sniff(data[:SNIFF_BYTES]) is kind
    assert sniff(data[: max(least, 1)]) is kind
    assert sniff(data) is kind, "more bytes than are needed change nothing"


@given(ANY_FILE, st.data())
def test_a_beginning_is_what_the_whole_is_or_nothing_that_would_be_read(name: str, drawn: st.DataObject) -> None:
    """An upload that broke off is never taken for another container than the one it was."""
    data, kind, least = FILES[name]
    length = drawn.draw(st.integers(0, min(len(data), SNIFF_BYTES)))
    found = sniff(data[:length])
    if length >= least:
        assert found is kind or kind in (MediaKind.PLAYLIST, MediaKind.HTML)
    elif found is not kind:
        read = PICTURES | VIDEOS | VIDEOS_UNREAD | {MediaKind.ZIP}
        assert found not in read or {found, kind} <= {MediaKind.MP4, MediaKind.AVIF, MediaKind.HEIC}


@given(st.binary(max_size=SNIFF_BYTES))
def test_any_bytes_are_something_and_only_no_bytes_are_empty(data: bytes) -> None:
    assert (sniff(data) is MediaKind.EMPTY) == (not data)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"isom", b"iso2", b"avc1", b"mp41"), MediaKind.MP4),
        ((b"qt  ",), MediaKind.MP4),
        ((b"isom", b"avif"), MediaKind.MP4),
        ((b"avif",), MediaKind.AVIF),
        ((b"avis", b"msf1"), MediaKind.AVIF),
        ((b"mif1", b"avif", b"miaf"), MediaKind.AVIF),
        ((b"mif1", b"heic"), MediaKind.HEIC),
        ((b"msf1",), MediaKind.HEIC),
        ((b"heix", b"mif1"), MediaKind.HEIC),
    ],
)
def test_the_brands_tell_pictures_from_videos(brands: tuple[bytes, ...], kind: MediaKind) -> None:
    assert sniff(boxed(*brands)) is kind


def test_brands_behind_the_box_do_not_count() -> None:
    box = boxed(b"mif1", b"heic")
    assert sniff(box + b"\x00\x00\x00\x0cftypavif" * 4) is MediaKind.HEIC


@pytest.mark.parametrize("lost", [0, 188, 376])
def test_a_transport_stream_needs_three_packets_in_their_places(lost: int) -> None:
    stream = bytearray(packets(188, 0))
    stream[lost] = 0x48
    assert sniff(bytes(stream)) is not MediaKind.MPEG_TS


@pytest.mark.parametrize("byte", [0, 1, 8, 14, 31])
def test_a_control_byte_makes_text_unknown(byte: int) -> None:
    assert sniff(b"frame 1\n" + bytes([byte])) is MediaKind.UNKNOWN


HEADERS: dict[str, tuple[bytes, tuple[int, int]]] = {
    "png": (PNG, (96, 72)),
    "jpeg": (JPEG, (96, 72)),
    "progressive jpeg": (PROGRESSIVE, (96, 72)),
    "webp": (WEBP, (96, 72)),
    "lossless webp": (WEBP_LOSSLESS, (96, 72)),
    "webp with alpha": (WEBP_ALPHA, (96, 72)),
    "gif": (GIF, (96, 72)),
}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_of_every_beginning_a_picture_s_size_is_right_or_refused(name: str) -> None:
    """A header that is cut within its numbers must not give other numbers."""
    data, size = HEADERS[name]
    known = []
    for length in range(min(len(data), 800)):
        try:
            found = picture_size(data[:length], "a")
        except AvatarUndecodable as error:
            assert "cut short" in error.detail or "is not a PNG" in error.detail
            assert not known, "more bytes make it no less known"
        else:
            known.append(found)
    assert known and set(known) == {size}


CHANGES = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8)


@given(st.sampled_from(sorted(HEADERS)), CHANGES, st.booleans())
def test_changed_bytes_give_a_size_and_a_cost_or_a_refusal_with_a_code(
    name: str, changes: list[tuple[float, int]], early: bool
) -> None:
    data = bytearray(HEADERS[name][0])
    for place, value in changes:
        data[int(place * (min(64, len(data)) if early else len(data)))] = value
    changed = bytes(data)
    try:
        kind = picture_kind(changed, "a")
        size = picture_size(changed, "a")
        if size is None:
            return
        assert min(size) >= 1
        check_structure(changed, "a", size[0] * size[1], LIMITS)
        cost = still_cost(changed, kind, size, size, "a", LIMITS.still_bytes)
    except AvatarError as error:
        assert error.code.startswith("avatar_") and len(error.detail) > 20
    else:
        assert 0 < cost.bytes <= LIMITS.still_bytes and cost.draft == 1


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


IHDR = (b"IHDR", struct.pack(">IIBBBBB", 96, 72, 8, 2, 0, 0, 0))
IDAT, IEND = (b"IDAT", zlib.compress(bytes(72 * (1 + 96 * 3)))), (b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        pytest.param(lambda: png_of(IHDR, IDAT), "cut short", id="no end"),
        pytest.param(lambda: png_of(IHDR, IDAT, IEND)[:-5], "cut short", id="half an end"),
        pytest.param(lambda: png_of(IHDR, IDAT).replace(IDAT[1], IDAT[1][:-1] + b"\x00"), "damaged", id="other pixels"),
        pytest.param(lambda: png_of(IHDR, *[(b"zTXt", b"a\0\0")] * 65, IDAT, IEND), "64 packed texts", id="texts"),
    ],
)
def test_a_png_is_whole_or_refused(data: Callable[[], bytes], reported: str) -> None:
    with pytest.raises(AvatarUndecodable, match=reported):
        check_structure(data(), "a.png", 96 * 72, LIMITS)


def test_as_many_packed_texts_as_are_allowed_pass() -> None:
    check_structure(png_of(IHDR, *[(b"iTXt", b"a")] * 64, IDAT, IEND), "a.png", 96 * 72, LIMITS)
