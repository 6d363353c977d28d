"""Pictures made in code, in the ways that cameras, phones and programs write them. All show the same scene."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from musetalk_agent.media_types import Pixels

COLOURS = {
    "top left": (200, 60, 50),
    "top right": (70, 160, 60),
    "bottom left": (60, 80, 190),
    "bottom right": (210, 190, 90),
}
"""RGB of the quarters of the scene; its upper half is the shorter one."""
ORIENTATION = 0x0112
STORED_AS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[::-1],
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
}
"""How the pixels of an upright picture lie in a file that says this EXIF orientation: where its first row and column are seen."""


def scene(width: int = 160, height: int = 120) -> Pixels:
    """RGB `[height, width, 3]`: four quarters of one colour each, cut at 40 % of the height and half of the width."""
    picture = np.empty((height, width, 3), np.uint8)
    cut, middle = height * 2 // 5, width // 2
    picture[:cut, :middle], picture[:cut, middle:] = COLOURS["top left"], COLOURS["top right"]
    picture[cut:, :middle], picture[cut:, middle:] = COLOURS["bottom left"], COLOURS["bottom right"]
    return picture


def quarters(bgr: Pixels) -> dict[str, tuple[int, int, int]]:
    """RGB in the middle of each quarter of a scene."""
    height, width = bgr.shape[:2]
    rows, columns = {"top": height // 5, "bottom": height * 7 // 10}, {"left": width // 4, "right": width * 3 // 4}
    found = {}
    for vertical, row in rows.items():
        for side, column in columns.items():
            part = bgr[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3).mean(0)
            found[f"{vertical} {side}"] = (round(part[2]), round(part[1]), round(part[0]))
    return found


def exif(orientation: int) -> bytes:
    """EXIF that says an orientation and nothing else; it begins with `Exif\\0\\0`."""
    reported = Image.Exif()
    reported[ORIENTATION] = orientation
    return reported.tobytes()


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def oriented(kind: str, orientation: int, mode: str = "RGB") -> bytes:
    """The scene as a file whose pixels are turned and mirrored, and whose EXIF says how."""
    turned = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](scene()))).convert(mode)
    options: dict[str, object] = {"quality": 95} if kind != "PNG" else {}
    return saved(turned, kind, exif=exif(orientation), **options)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def webp_with_prefixed_exif(orientation: int) -> bytes:
    """A WebP whose EXIF chunk begins `Exif\\0\\0`, as some programs write it; the specification leaves that out."""
    data = oriented("WEBP", orientation)
    at = data.index(b"EXIF")
    length = struct.unpack_from("<I", data, at + 4)[0]
    body = data[at + 8 : at + 8 + length]
    body = body if body.startswith(b"Exif\0\0") else b"Exif\0\0" + body
    chunks = data[12:at] + b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def png_with_late_exif(orientation: int) -> bytes:
    """A PNG whose EXIF stands behind its pixels."""
    data = saved(Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](scene()))), "PNG")
    return data[:-12] + png_chunk(b"eXIf", exif(orientation)[6:]) + data[-12:]


def jpeg_with_xmp_orientation(orientation: int) -> bytes:
    """A JPEG whose orientation stands in its XMP alone, as some editors write it."""
    data = saved(Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](scene()))), "JPEG", quality=95)
    body = b"http://ns.adobe.com/xap/1.0/\0" + (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        % orientation
    )
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def gain_mapped_jpeg() -> bytes:
    """A JPEG with a second, grey one behind it (MPF), as phones keep what brightens their pictures on HDR screens."""
    base, gain = Image.fromarray(scene()), Image.new("L", (40, 30), 255)
    return saved(base, "MPO", save_all=True, append_images=[gain], quality=95)


def sixteen_bit_png(alpha: bool = False) -> bytes:
    """The scene with sixteen bits a colour."""
    picture = scene().astype(np.uint16)[:, :, ::-1] * 257
    if alpha:
        picture = np.dstack([picture, np.full(picture.shape[:2], 65_535, np.uint16)])
    return bytes(cv2.imencode(".png", picture)[1])


def see_through(mode: str = "RGBA") -> Image.Image:
    """The scene whose lower right quarter is transparent; bright green lies under it."""
    picture = np.dstack([scene(), np.full((120, 160), 255, np.uint8)])
    picture[48:, 80:] = (0, 255, 0, 0)
    return Image.fromarray(picture).convert(mode)


def palette_png() -> bytes:
    """The scene with a palette, one entry of which is transparent."""
    picture = Image.fromarray(scene()).quantize(8, dither=Image.Dither.NONE)
    hidden = picture.getpixel((150, 110))
    return saved(picture, "PNG", transparency=hidden)


def keyed_png(sixteen: bool = False) -> bytes:
    """The scene without alpha, of which one colour (lower right) is transparent."""
    if not sixteen:
        return saved(Image.fromarray(scene()), "PNG", transparency=COLOURS["bottom right"])
    data = sixteen_bit_png()
    body = struct.pack(">HHH", *(value * 257 for value in COLOURS["bottom right"]))
    return data[:33] + png_chunk(b"tRNS", body) + data[33:]


def icc_profile(
    primaries: Sequence[Sequence[float]], gamma: float, white: Sequence[float] = (0.9642, 1.0, 0.8249)
) -> bytes:
    """A matrix profile (ICC.1:2001-04): D50-adapted XYZ of red, green and blue, one gamma for all."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65_536))

    def xyz(values: Sequence[float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number(value) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + bytes(78)
    tags = {b"desc": text + bytes(-len(text) % 4), b"cprt": b"text\0\0\0\0none", b"wtpt": xyz(white)}
    tags |= {name: xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    head = (
        struct.pack(">I", size) + b"lcms" + bytes([2, 0x40, 0, 0]) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    )
    return head + xyz((0.9642, 1.0, 0.8249))[8:] + bytes(128 - len(head) - 12) + table + body


DISPLAY_P3 = icc_profile(((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), 2.2)
"""Primaries of Display P3, adapted to D50, with a gamma of 2.2 in place of sRGB's curve, from which it differs little."""
