"""Files made to break an unpacker or a decoder: each is refused with its code, at once, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import (
    AvatarEmpty,
    AvatarError,
    AvatarSizesDiffer,
    AvatarTooLarge,
    AvatarUndecodable,
    AvatarUnsafeArchive,
    NoFaceInAvatar,
)
from musetalk_agent.protocol.http import AvatarSource, Picture
from tests.musetalk_agent.avatars.clips import archive, encoded, face, flat, frames_zip, moving, noise, video
from tests.musetalk_agent.avatars.hostile.mp4_boxes import box, fragment, movie, track
from tests.waiting import NEVER_S

PNG = encoded(face(96))
JPEG = encoded(face(96), ".jpg")
WEBP = encoded(face(96), ".webp")
ZIP = frames_zip(moving(3, 96))
MP4 = video(moving(6, 96))
WEBM = video(moving(6, 96), container="webm", codec="libvpx")


def special(name: str, kind: int) -> zipfile.ZipInfo:
    """An entry that is no plain file."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    info.create_system = 3
    return info


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def huge_png(width: int, height: int) -> bytes:
    """A true header and few packed bytes: gigabytes when decoded."""
    return png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(100_000))) + png_chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    """A JPEG whose frame header says 65500×65500."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", 65_500, 65_500) + JPEG[at + 4 :]


def huge_webp() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def encrypted() -> bytes:
    """Flag bit 0 set in both headers."""
    data = bytearray(archive([("a.png", PNG)]))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """Two directory entries that share one set of packed bytes: how small archives become petabytes."""
    data = archive([("a.png", PNG), ("b.png", PNG)], zipfile.ZIP_STORED)
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    return data[: second + 42] + struct.pack("<I", 0) + data[second + 46 :]


def lying_size() -> bytes:
    """The directory says ten bytes, the packed data holds a megabyte."""
    data = bytearray(archive([("a.png", bytes(1 << 20))]))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(data)


def lying_count() -> bytes:
    """The end record says 60,000 entries where there is one."""
    data = bytearray(archive([("a.png", PNG)]))
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def huge_directory() -> bytes:
    """The end record says the directory has four gigabytes."""
    data = bytearray(archive([("a.png", PNG)]))
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 16] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(data)


def bad_checksum() -> bytes:
    data = bytearray(archive([("a.png", PNG)], zipfile.ZIP_STORED))
    data[data.index(b"IDAT") + 30] ^= 0xFF
    return bytes(data)


def two_zip64_records() -> bytes:
    """The one where the locator points says one entry, and is an entry's contents; the one right before the locator says 70,000."""
    modest = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 60, 0)
    packed = archive([("0", modest), *((f"{k}", b"") for k in range(1, 70_000))], zipfile.ZIP_STORED)
    at = packed.rindex(b"PK\x06\x07") + 8
    return packed[:at] + struct.pack("<Q", packed.index(modest)) + packed[at + 8 :]


def few_entries_large_directory() -> bytes:
    """The end record says one entry, in a directory of 4,000."""
    data = bytearray(archive([(f"{k}.png", b"") for k in range(4_000)], zipfile.ZIP_STORED))
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<HH", 1, 1)
    return bytes(data)


def jpeg_of_scans(scans: int, side: int = 4096) -> bytes:
    """A progressive JPEG of one grey; each scan after the first takes 35 bytes and goes through the whole picture."""

    def segment(marker: int, body: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body

    blocks = (side // 8) ** 2
    table = bytes([1] + [0] * 15)  # one code of one bit
    out = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([16] * 64))
    out += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    out += segment(0xC4, b"\x00" + table + b"\x00") + segment(0xC4, b"\x10" + table + b"\xe0")
    out += segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8)
    runs = "0" + "1" * 14  # an end of band for 32,767 blocks
    bits = runs * -(-blocks // 32_767)
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return out + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + coded) * scans + b"\xff\xd9"


def gif(*sizes: tuple[int, int], screen: tuple[int, int] = (96, 96)) -> bytes:
    """A GIF of frames of these sizes and next to no data on a screen of another."""
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    for width, height in sizes:
        out += b"\x21\xf9\4\0\4\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0"
    return out + b"\x3b"


def png_of_texts(texts: int) -> bytes:
    """A PNG whose packed texts take eight megabytes each."""
    text = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(7_900_000), 9))
    return PNG[:33] + text * texts + PNG[33:]


def name_that_is_no_text() -> bytes:
    """The entry's own header has a name that is not the UTF-8 which its flag says (found by fuzzing)."""
    data = archive([("é.png", PNG)], zipfile.ZIP_STORED)
    return data.replace("é.png".encode(), b"\x89\x89.png", 1)


def name_with_nul() -> bytes:
    data = archive([("a.pngX../../b", PNG)], zipfile.ZIP_STORED)
    return data.replace(b"a.pngX../../b", b"a.png\0../../b")


def sound() -> bytes:
    """An MP4 without a picture track."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


Made = bytes | Callable[[], bytes]
"""What takes long to make is made by its own test: every worker of a run reads this file."""

UNSAFE: dict[str, Made] = {
    "climbs out": archive([("../../evil.png", PNG), ("a.png", PNG)]),
    "climbs out from a folder": archive([("a/../../evil.png", PNG)]),
    "only dots": archive([("..", PNG)]),
    "backslash climb": archive([("..\\..\\evil.png", PNG)]),
    "absolute path": archive([("/etc/evil.png", PNG)]),
    "absolute backslash": archive([("\\\\host\\share\\a.png", PNG)]),
    "drive letter": archive([("C:\\a.png", PNG)]),
    "drive letter, relative": archive([("c:a.png", PNG)]),
    "newline in the name": archive([("a\n.png", PNG)]),
    "escape in the name": archive([("\x1b[2Ja.png", PNG)]),
    "nul in the name": name_with_nul(),
    "symbolic link": archive([(special("a.png", stat.S_IFLNK), b"/etc/passwd")]),
    "symbolic link among frames": archive([("0.png", PNG), (special("1.png", stat.S_IFLNK), b"0.png")]),
    "device": archive([(special("a.png", stat.S_IFCHR), b"")]),
    "pipe": archive([(special("a.png", stat.S_IFIFO), b"")]),
    "socket": archive([(special("a.png", stat.S_IFSOCK), b"")]),
    "encrypted": encrypted(),
    "zip in a zip": archive([("a.zip", ZIP)]),
    "tar beside frames": archive([("a.png", PNG), ("more.tar.gz", b"x")]),
    "bomb of zeros": lambda: archive([("a.png", bytes(64 << 20))]),
    "bomb beside a frame": lambda: archive([("a.png", PNG), ("notes.txt", bytes(64 << 20))]),
    "overlapping entries": overlapping(),
}
TOO_LARGE: dict[str, Made] = {
    "6,000 entries": lambda: archive([(f"{k}.png", b"") for k in range(6_000)], zipfile.ZIP_STORED),
    "70,000 entries (zip64)": lambda: archive([(f"{k}", b"") for k in range(70_000)], zipfile.ZIP_STORED),
    "an end record that lies": lying_count(),
    "a directory of 4 GB": huge_directory(),
    "60,000² PNG": archive([("a.png", huge_png(60_000, 60_000))]),
    "a PNG of one row": archive([("a.png", huge_png(2**31 - 1, 64))]),
    "65,500² JPEG": archive([("a.jpg", huge_jpeg())]),
    "16,777,216² WebP": archive([("a.webp", huge_webp())]),
    "huge PNG alone": huge_png(30_000, 30_000),
    "JPEG of 8,000 scans": lambda: jpeg_of_scans(8_000),
    "JPEG of 101 scans": lambda: jpeg_of_scans(101, 512),
    "GIF of a frame of 10,000²": gif((10_000, 10_000)),
    "animated GIF of a frame of 10,000²": gif((10_000, 10_000), (96, 96)),
    "GIF of a screen of 10,000²": gif((96, 96), screen=(10_000, 10_000)),
    "MP4 of 20 million samples": movie(track(20_000_000)),
    "MP4 of 300,000 samples": movie(track(300_000)),
    "MP4 of 4 milliard samples": movie(track(0xFFFFFFFF)),
    "MP4 of 30 tracks of 10,000 samples": movie(*[track(10_000)] * 30),
    "MP4 of 1,000 tracks": lambda: movie(*[track()] * 1_000),
    "MP4 of many durations": movie(track(timed=50_000_000)),
    "MP4 of many offsets": movie(track(shifted=50_000_000)),
    "MP4 of 3,000 edits": movie(track(1_000, edits=3_000)),
    "MP4 of a run of 50 million": movie(track(), behind=fragment(50_000_000)),
    "MP4 of 500 runs of 1,000": lambda: movie(track(), behind=fragment(1_000) * 500),
    "MOV of hours of PCM": movie(track(), track(2_000_000_000, sound=True)),
    "MOV of PCM in one chunk": movie(track(), track(1, sound=True, in_chunk=2_000_000_000)),
    "MP4 of 200,000 boxes": lambda: movie(track()) + box(b"free") * 200_000,
}
BROKEN: dict[str, Made] = {
    "cut in half": ZIP[: len(ZIP) // 2],
    "without its end": ZIP[:-10],
    "only a beginning": b"PK\x03\x04",
    "a directory at nowhere": b"PK\x03\x04"
    + bytes(100)
    + b"PK\x05\x06"
    + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 9999, 0),
    "text as PNG": archive([("a.png", b"hello"), ("b.png", b"hello")]),
    "empty PNG": archive([("a.png", b"")]),
    "GIF as PNG": archive([("a.png", b"GIF89a" + bytes(100))]),
    "SVG as PNG": archive([("a.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>')]),
    "PNG cut short": archive([("a.png", PNG[: len(PNG) // 2])]),
    "PNG of a header": archive([("a.png", PNG[:33])]),
    "PNG without a header": archive([("a.png", PNG[:8])]),
    "PNG with rubbish inside": archive([("a.png", png_header(96, 96) + b"\xff" * 500 + b"IEND")]),
    "PNG of no size": archive([("a.png", huge_png(0, 0))]),
    "JPEG cut short": archive([("a.jpg", JPEG[: len(JPEG) // 2])]),
    "JPEG without a frame": archive([("a.jpg", b"\xff\xd8\xff\xe0\x00\x10" + bytes(14) + b"\xff\xd9")]),
    "JPEG of endless fill": archive([("a.jpg", b"\xff\xd8" + b"\xff" * 5000)], zipfile.ZIP_STORED),
    "WebP cut short": archive([("a.webp", WEBP[: len(WEBP) // 2])]),
    "WebP of a header": archive([("a.webp", WEBP[:20])]),
    "two zip64 end records": two_zip64_records,
    "one entry in a directory of 4,000": few_entries_large_directory,
    "names of 5,000 digits": lambda: archive([("1" * 5_000 + ".png", b"x"), ("2.png", b"y")]),
    "PNG of 100 packed texts": lambda: png_of_texts(100),
    "GIF of a frame of 65,535²": gif((65_535, 65_535)),
    "GIF whose second frame is larger": gif((96, 96), (600, 600)),
    "HEIC of a header": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC of rubbish": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + np.random.default_rng(5).bytes(3000),
    "AVIF of rubbish": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + np.random.default_rng(6).bytes(3000),
    "JPEG of 7 MB of fill": lambda: b"\xff\xd8" + b"\xff" * 7_000_000,
    "JPEG of 100,000 comments": b"\xff\xd8" + b"\xff\xfe\0\x02" * 100_000,
    "MP4 of a packed index": b"\0\0\0\x10ftypisom\0\0\0\0" + box(b"moov", box(b"cmov", bytes(100))),
    "a damaged entry": bad_checksum(),
    "an entry's name that is no text": name_that_is_no_text(),
    "an entry that lies about its size": lying_size(),
    "packed by bzip2": archive([("a.png", PNG)], zipfile.ZIP_BZIP2),
    "tiny": frames_zip([flat(127, 8, 8)] * 3),
    "a strip": frames_zip([flat(127, 1000, 20)] * 3),
    "one damaged frame": archive([("0.png", PNG), ("1.png", PNG[:-200]), ("2.png", PNG)]),
    "a page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "a concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a DASH manifest": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
    "a GIF": b"GIF89a" + bytes(200),
    "a tarball": gzip.compress(b"x" * 1000),
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "noise": np.random.default_rng(3).bytes(5000),
    "MP4 cut short": MP4[: len(MP4) // 3],
    "MP4 of a header": MP4[:32],
    "WebM of a header": WEBM[:60],
    "rubbish called MPEG": b"\0\0\x01\xba" + bytes(2000),
    "rubbish called WebM": b"\x1a\x45\xdf\xa3" + np.random.default_rng(4).bytes(3000),
    "a picture with a zip behind it, cut": PNG[:-40] + ZIP,
}
EMPTY: dict[str, Made] = {
    "no bytes": b"",
    "an empty archive": archive([]),
    "only a folder": archive([("frames/", b"")]),
    "only text": archive([("readme.txt", b"hello")]),
    "only a Mac's shadow files": archive([("__MACOSX/._a.png", b"x"), (".DS_Store", b"x")]),
    "only a video": archive([("a.mp4", MP4)]),
    "a video of sound": lambda: sound(),
    "MP4 whose box is longer than the file": b"\0\0\0\x18ftypisom" + bytes(12) + b"\x7f\xff\xff\xffmoov" + bytes(50),
}
NO_FACE: dict[str, Made] = {
    "noise frames": lambda: frames_zip([noise()] * 4),
    "grey frames": frames_zip([flat()] * 4),
    "black picture": encoded(flat(0)),
    "a video of noise": lambda: video([noise()] * 8),
}


async def refused(library: AvatarLibrary, data: bytes) -> AvatarError:
    with pytest.raises(AvatarError) as caught:
        async with asyncio.timeout(NEVER_S):
            await library.prepare(AvatarSource(avatar_id=await library.add(data, "clip")), Picture())
    assert caught.value.status == 422 and len(caught.value.detail) > 20
    return caught.value


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(data, error, id=name)
        for cases, error in (
            (UNSAFE, AvatarUnsafeArchive),
            (TOO_LARGE, AvatarTooLarge),
            (BROKEN, AvatarUndecodable),
            (EMPTY, AvatarEmpty),
            (NO_FACE, NoFaceInAvatar),
        )
        for name, data in cases.items()
    ],
)
async def test_refused(library: AvatarLibrary, data: Made, error: type[AvatarError]) -> None:
    assert type(await refused(library, data() if callable(data) else data)) is error


async def test_sizes_that_differ_are_reported_with_name_and_sizes(library: AvatarLibrary) -> None:
    data = archive([("0.png", PNG), ("1.png", encoded(noise(320, 240)))])
    error = await refused(library, data)
    assert isinstance(error, AvatarSizesDiffer)
    assert error.detail.startswith("'1.png' is 320×240, the first frame is 96×96") and error.limit == "96x96"


async def test_an_offending_name_is_shown_harmless_and_short(library: AvatarLibrary) -> None:
    error = await refused(library, archive([("/" + "\x1b[31m" + "x" * 5000 + ".png", PNG)]))
    assert "\x1b" not in error.detail and len(error.detail) < 300


async def test_a_picture_with_a_zip_behind_it_is_the_picture(library: AvatarLibrary, tmp_path: Path) -> None:
    """A polyglot is what its first bytes say; the archive behind them is never opened."""
    polyglot = encoded(flat(100, 200, 200)) + archive([("../../evil.png", PNG)])
    assert isinstance(await refused(library, polyglot), NoFaceInAvatar)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole", [ZIP, MP4, WEBM, JPEG], ids=["zip", "mp4", "webm", "jpeg"])
async def test_flipped_bytes_never_crash(library: AvatarLibrary, whole: bytes, seed: int, tmp_path: Path) -> None:
    """Whatever comes of damaged bytes is an avatar or a refusal with a code."""
    generator = random.Random(seed)
    data = bytearray(whole)
    for _ in range(12):
        data[generator.randrange(len(data))] = generator.randrange(256)
    try:
        bundle = await library.prepare(AvatarSource(avatar_id=await library.add(bytes(data))), Picture())
    except AvatarError as error:
        assert error.status == 422
    else:
        bundle_path = bundle.path
        del bundle
        bundle_path.rename(tmp_path / "cache" / "sources" / "gone")
